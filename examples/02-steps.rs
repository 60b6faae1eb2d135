//! A task that survives: durable steps, progress, and a retry that does not repeat what is done.
//!
//! `cargo run --example 02-steps`

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pensum::{Context, ErrorInfo, Pensum, RetryPolicy, Task, TaskError};

static CHARGES: AtomicU32 = AtomicU32::new(0);

/// Charging a card twice would be a pity: the step's result is stored, and a later attempt gets it from the store.
async fn order(ctx: Context, amount: u32) -> Result<String, TaskError> {
    let receipt: String = ctx
        .step("charge", || async {
            CHARGES.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ErrorInfo>(format!("receipt for {amount}"))
        })
        .await?;
    ctx.progress(50.0, "charged".to_owned());
    if ctx.attempt() == 1 {
        return Err(TaskError::retry("the warehouse does not answer"));
    }
    Ok(format!("{receipt}, shipped at attempt {}", ctx.attempt()))
}

#[tokio::main]
async fn main() -> Result<(), pensum::Error> {
    let pensum = Pensum::builder()
        .store("sqlite::memory:")
        .handler("order", order)
        .on_event(|event| println!("  {event:?}"))
        .start()
        .await?;

    let task = Task::new("order", 25u32).retries(3, RetryPolicy::fixed(Duration::from_millis(100)));
    let id = pensum.enqueue(task).await?;
    let outcome: String = pensum.result(id).await?;
    println!(
        "{outcome}; the card was charged {} time",
        CHARGES.load(Ordering::SeqCst)
    );

    pensum.shutdown().await;
    Ok(())
}
