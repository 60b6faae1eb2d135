//! PostgreSQL: databases on a shared server, and servers of a test's own.

mod database;
mod place;
mod pooler;
mod server;
mod settings;
mod standby;

pub use database::Database;
pub use pooler::Pooler;
pub use server::{Mode, Server};
pub use standby::Confirm;

use tokio_postgres::{Client, NoTls};

/// The server that all tests share, as a URL of its database `postgres`.
///
/// It is `PENSUM_TEST_POSTGRES` where that is set, and otherwise what `tests/postgres start` answers, which starts a
/// server unless one runs and leaves it running for the next test.
///
/// # Panics
///
/// When there is no server and none can be started.
#[must_use]
pub fn url() -> String {
    settings::url()
}

/// The same server behind pgbouncer in transaction mode, from `PENSUM_TEST_PGBOUNCER` or `tests/postgres start`.
///
/// # Panics
///
/// When there is no pooler and none can be started, or only one of the two variables is set.
#[must_use]
pub fn pooled_url() -> String {
    settings::pooled_url()
}

/// A connection without TLS, driven by a task of the runtime that this is called in.
///
/// # Panics
///
/// When the server does not answer.
pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|error| panic!("cannot connect to {url}: {error:?}"));
    // How a connection ended is the answer of the statement that it carried.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// The URL of another database of the same server.
fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url
        .split_once('?')
        .map_or((url, None), |(base, query)| (base, Some(query)));
    let host = base.find("://").map_or(0, |at| at + "://".len());
    let end = base[host..].find('/').map_or(base.len(), |slash| host + slash);
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{}/{name}{query}", &base[..end])
}

/// Runs a future to its end wherever the caller stands: in a thread without a runtime, within one, or in a destructor.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime of one thread")
                .block_on(future)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn another_database_of_the_same_server_keeps_all_else_of_the_url() {
        let check = |url, expected: &str| assert_eq!(with_database(url, "x"), expected);
        check("postgres://a:b@h:1/postgres", "postgres://a:b@h:1/x");
        check("postgres://h", "postgres://h/x");
        check(
            "postgres://h/y?sslmode=disable&options=-c/z",
            "postgres://h/x?sslmode=disable&options=-c/z",
        );
    }
}
