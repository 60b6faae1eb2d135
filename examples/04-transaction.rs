//! A task that is there exactly if a transaction of the application commits, on PostgreSQL.
//!
//! `PENSUM_DB=postgres://USER@HOST:PORT/DATABASE cargo run --example 04-transaction`
//!
//! It works in the schema `pensum_example` of that database, and removes it at the end.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use pensum::{Context, Pensum, Task, TaskError};
use tokio_postgres::{Client, NoTls};

async fn ship(_: Context, item: String) -> Result<String, TaskError> {
    Ok(format!("the {item} is on its way"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database = std::env::var("PENSUM_DB")
        .map_err(|_| "PENSUM_DB names no database; write postgres://USER@HOST:PORT/DATABASE")?;
    let join = if database.contains('?') { '&' } else { '?' };
    let pensum = Pensum::builder()
        .store(format!("{database}{join}schema=pensum_example"))
        .handler("ship", ship)
        .start()
        .await?;

    // The application's own connection and table.
    let (mut client, connection) = tokio_postgres::connect(&database, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("CREATE TEMPORARY TABLE orders(item text)").await?;
    buy(&pensum, &mut client).await?;

    pensum.shutdown().await;
    client.batch_execute("DROP SCHEMA pensum_example CASCADE").await?;
    Ok(())
}

async fn buy(pensum: &Pensum, client: &mut Client) -> Result<(), Box<dyn std::error::Error>> {
    let outbox = pensum.outbox()?;

    // The customer changes their mind: neither the order nor its task has ever been there.
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO orders VALUES ('sofa')", &[]).await?;
    let never = outbox.enqueue(&transaction, Task::new("ship", "sofa")).await?;
    transaction.rollback().await?;
    assert!(pensum.task(never).await?.is_none());

    // Another one does not.
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO orders VALUES ('lamp')", &[]).await?;
    let shipped = outbox.enqueue(&transaction, Task::new("ship", "lamp")).await?;
    // A task with a key, a unique key or dependencies is enqueued by a node, right after the commit.
    let row = outbox
        .submit(&transaction, Task::new("ship", "shade").key("one van").tag("later"))
        .await?;
    transaction.commit().await?;

    let orders = client.query("SELECT item FROM orders", &[]).await?.len();
    let answer: String = pensum.result(shipped).await?;
    println!("orders: {orders}; {answer}; more in row {row} of the intake");
    Ok(())
}
