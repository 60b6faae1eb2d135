//! Tasks that wait for each other, enqueued together: fetch in parallel, then merge, then a clean-up that always runs.
//!
//! `cargo run --example 03-pipeline`

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use pensum::{Batch, Context, OnDependencyFailure, Pensum, Priority, Task, TaskError};

async fn fetch(ctx: Context, page: u32) -> Result<usize, TaskError> {
    ctx.log(format!("page {page}"));
    if page == 13 {
        Err(TaskError::fatal("there is no page 13"))
    } else {
        Ok(page as usize * 100)
    }
}

async fn merge(_: Context, what: String) -> Result<String, TaskError> {
    Ok(format!("{what} merged"))
}

async fn clean_up(ctx: Context, _: ()) -> Result<usize, TaskError> {
    Ok(ctx.failed_dependencies().await?.len())
}

#[tokio::main]
async fn main() -> Result<(), pensum::Error> {
    let pensum = Pensum::builder()
        .store("sqlite::memory:")
        .handler("fetch", fetch)
        .handler("merge", merge)
        .handler("clean-up", clean_up)
        .start()
        .await?;

    for pages in [[1, 2, 3], [12, 13, 14]] {
        let mut batch = Batch::new();
        let fetched: Vec<_> = pages.iter().map(|page| batch.add(Task::new("fetch", page))).collect();
        let merge = fetched
            .iter()
            .fold(Task::new("merge", format!("{pages:?}")), |task, item| {
                task.after_item(*item)
            });
        let merged = batch.add(merge.priority(Priority::High));
        let clean = Task::new("clean-up", ())
            .after_item(merged)
            .on_dependency_failure(OnDependencyFailure::Run);
        let cleaned = batch.add(clean);

        let ids = pensum.enqueue_all(batch).await?;
        match pensum.result::<String>(ids[merged.index()]).await {
            Ok(text) => println!("{text}"),
            Err(error) => println!("not merged: {error}"),
        }
        let failed: usize = pensum.result(ids[cleaned.index()]).await?;
        println!("cleaned up; {failed} dependency failed");
    }

    pensum.shutdown().await;
    Ok(())
}
