//! Databases of a test's own on the shared server.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio_postgres::Client;

use super::{block_on, connect, place, pooled_url, url, with_database};

/// A database that no other test uses; dropped with this value, unless the test is failing: then it stays to be looked
/// at until the server stops.
///
/// Made in some 25 ms, dropped in 15 ms (two cores, PostgreSQL 15).
#[derive(Debug)]
pub struct Database {
    name: String,
}

impl Database {
    /// A new and empty database.
    ///
    /// # Panics
    ///
    /// When the server does not answer or refuses.
    pub async fn fresh() -> Database {
        // Nobody may connect to template0, so nobody is in the way of copying it.
        Database::copy(&connect(&url()).await, "template0").await
    }

    /// A copy of a database that `migrate` has filled.
    ///
    /// The first test that asks for this `name` calls `migrate` with the URL of an empty database; all others wait for
    /// it, in this process and in others, and copy what it made. A new build of a test program begins anew, so that what
    /// an older one migrated is never used. Connections that `migrate` leaves open are ended.
    ///
    /// # Panics
    ///
    /// When the server does not answer or refuses, when `migrate` panics, and when `name` is not made of at most 20
    /// lower-case letters, digits and underscores.
    pub async fn from_template(name: &str, migrate: impl AsyncFnOnce(String)) -> Database {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        assert!(
            !name.is_empty() && name.len() <= 20 && name.bytes().all(allowed),
            "the template {name:?} must be named by up to 20 lower-case letters, digits and underscores"
        );
        let admin = connect(&url()).await;
        let template = Template::of_this_build(name);
        if !exists(&admin, &template.name).await {
            template.make(&admin, migrate).await;
        }
        Database::copy(&admin, &template.name).await
    }

    async fn copy(admin: &Client, template: &str) -> Database {
        let name = format!("test_{:016x}", place::random());
        // Copying the files takes 26 ms where writing them to the log takes 36, and halves the 20 ms of the later drop, which
        // then finds no pages in memory. Versions before 15 know no other way.
        let strategy = if version(admin).await >= 150_000 {
            "STRATEGY file_copy"
        } else {
            ""
        };
        run(admin, &format!("CREATE DATABASE {name} TEMPLATE {template} {strategy}")).await;
        Database { name }
    }

    /// Its name on the server.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL on the server itself.
    #[must_use]
    pub fn url(&self) -> String {
        with_database(&url(), &self.name)
    }

    /// Its URL through pgbouncer in transaction mode.
    ///
    /// # Panics
    ///
    /// When there is no pooler.
    #[must_use]
    pub fn pooled_url(&self) -> String {
        with_database(&pooled_url(), &self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the database of the failed test stays: {}", self.url());
            return;
        }
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        block_on(async { run(&connect(&url()).await, &drop).await });
    }
}

/// A database to copy.
struct Template {
    name: String,
    /// What the names of this program's older builds begin with too.
    program: String,
}

impl Template {
    fn of_this_build(name: &str) -> Template {
        let program = std::env::current_exe().expect("the path of this program");
        let file = program.metadata().expect("the file of this program");
        let built = (file.modified().expect("the time of its last build"), file.len());
        let program = format!("template_{name}_{:08x}", hash(&program));
        Template {
            name: format!("{program}_{:08x}", hash(&built)),
            program,
        }
    }

    /// Makes it, unless another process was faster.
    async fn make(&self, admin: &Client, migrate: impl AsyncFnOnce(String)) {
        // Held until the connection ends, also where `migrate` panics.
        let program = &self.program;
        run(
            admin,
            &format!("SELECT pg_advisory_lock(hashtextextended('{program}', 0))"),
        )
        .await;
        if exists(admin, &self.name).await {
            return;
        }
        for old in names(admin, &format!("{program}%")).await {
            run(admin, &format!("DROP DATABASE {old} WITH (FORCE)")).await;
        }
        let unfinished = format!("{program}_unfinished");
        run(admin, &format!("CREATE DATABASE {unfinished} TEMPLATE template0")).await;
        migrate(with_database(&url(), &unfinished)).await;
        // The name appears only when all is in it and nobody can be connected to it.
        run(admin, &format!("ALTER DATABASE {unfinished} ALLOW_CONNECTIONS false")).await;
        let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{unfinished}'");
        run(admin, &end).await;
        run(admin, &format!("ALTER DATABASE {unfinished} RENAME TO {}", self.name)).await;
        run(admin, "SELECT pg_advisory_unlock_all()").await;
    }
}

fn hash(what: &impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    let hash = hasher.finish();
    (hash ^ (hash >> 32)) as u32
}

async fn exists(admin: &Client, name: &str) -> bool {
    !names(admin, name).await.is_empty()
}

/// Names of databases that are LIKE `pattern`; the underscore stands for itself.
async fn names(admin: &Client, pattern: &str) -> Vec<String> {
    let pattern = pattern.replace('_', "\\_");
    let rows = admin
        .query(
            "SELECT datname::text FROM pg_database WHERE datname LIKE $1",
            &[&pattern],
        )
        .await
        .unwrap_or_else(|error| panic!("cannot list databases: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// The server's version, such as 150004.
async fn version(admin: &Client) -> i32 {
    let row = admin
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .unwrap_or_else(|error| panic!("cannot ask for the version: {error:?}"));
    row.get(0)
}

async fn run(admin: &Client, statement: &str) {
    if let Err(error) = admin.batch_execute(statement).await {
        panic!("{statement}: {error:?}");
    }
}
