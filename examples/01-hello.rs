//! The shortest whole program: a typed handler, a task, its result.
//!
//! `cargo run --example 01-hello`

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use pensum::{Context, Pensum, Task, TaskError};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
}

async fn greet(ctx: Context, job: Greet) -> Result<String, TaskError> {
    ctx.log(format!("greeting {}", job.name));
    Ok(format!("Hello, {}!", job.name))
}

#[tokio::main]
async fn main() -> Result<(), pensum::Error> {
    // `sqlite:hello.db` would keep the task through a crash; this one lives as long as the process.
    let pensum = Pensum::builder()
        .store("sqlite::memory:")
        .handler("greet", greet)
        .start()
        .await?;

    let id = pensum
        .enqueue(Task::new("greet", Greet { name: "Ada".to_owned() }))
        .await?;
    let greeting: String = pensum.result(id).await?;
    println!("{greeting}");

    // Parameters that do not fit the handler's type are refused at once, with the path of what is wrong.
    let refused = pensum
        .enqueue(Task::new("greet", serde_json::json!({ "name": 42 })))
        .await;
    println!("{}", refused.expect_err("42 is no name"));

    pensum.shutdown().await;
    Ok(())
}
