//! The PostgreSQL server that is measured, and the place on it that is the bench's own: a new database, or, for a user who
//! may not create one, new schemas in the database that the URL names. Nothing else there is touched.

use std::sync::Arc;

use anyhow::Context as _;
use pensum_engine::system_seams;
use pensum_store::postgres::PostgresOptions;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::meter::parent_of_backend;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;

/// How a place's name begins, so that whoever finds one knows whose it was.
const NAME_PREFIX: &str = "pensum_bench_";
/// The first schema of a database of the bench's own.
const SCHEMA: &str = "bench";

/// Where the bench's tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// In a new database.
    Database,
    /// In new schemas of the database that the URL names.
    Schemas,
}

/// A place on a server. [`Database::remove`] takes it away again.
pub(super) struct Database {
    address: Address,
    name: String,
    home: Home,
    server: Server,
}

/// What a server says of itself.
struct Server {
    settings: String,
    /// The server's first process, where it runs on this machine.
    postmaster: Option<u32>,
}

impl Database {
    /// Makes a place of a new name on the server of a URL.
    ///
    /// # Errors
    /// When the server cannot be reached, or its user may create neither a database nor a schema.
    pub(super) async fn create(url: &str) -> anyhow::Result<Database> {
        let address = Address::of(url);
        let name = format!("{NAME_PREFIX}{:08x}", system_seams().random.bits() as u32);
        let client = connect(url).await?;
        let mut database = Database {
            server: Server::ask(&client).await?,
            address,
            name,
            home: Home::Database,
        };
        let sql = format!("CREATE DATABASE \"{}\" TEMPLATE template0", database.name);
        match client.batch_execute(&sql).await {
            Ok(()) => {
                if connect(&database.url(SCHEMA)).await.is_err() {
                    // A pooler, or the server's own rules, let nobody into a database that they do not know.
                    database.remove().await?;
                    database.home = Home::Schemas;
                }
            }
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => database.home = Home::Schemas,
            Err(error) => return Err(error).context("cannot create a database to bench in"),
        }
        if database.home == Home::Schemas {
            may_create_schemas(&client).await?;
        }
        output::warn(&format!(
            "benching in {}, made for it and dropped in the end; nothing else on the server is touched",
            database.place()
        ));
        output::warn(&database.server.settings);
        Ok(database)
    }

    fn place(&self) -> String {
        match self.home {
            Home::Database => format!("the database {}", self.name),
            Home::Schemas => format!("schemas that begin with {}", self.name),
        }
    }

    /// The server's version and those of its settings that matter to figures.
    pub(super) fn settings(&self) -> &str {
        &self.server.settings
    }

    /// The server's first process, where it runs on this machine.
    pub(super) const fn postmaster(&self) -> Option<u32> {
        self.server.postmaster
    }

    fn url(&self, schema: &str) -> String {
        let database = match self.home {
            Home::Database => Some(self.name.as_str()),
            Home::Schemas => None,
        };
        self.address.url(database, schema, &self.name)
    }

    /// Takes the place away, with whatever is in it and whoever is still connected to it.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        let name = &self.name;
        let removed = async {
            let client = connect(&self.address.given).await?;
            match self.home {
                Home::Database => {
                    let sql = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
                    client.batch_execute(&sql).await?;
                }
                Home::Schemas => drop_schemas(&client, name).await?,
            }
            anyhow::Ok(())
        };
        removed
            .await
            .with_context(|| format!("cannot drop what the bench made; drop it yourself: {}", self.place()))
    }
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    Ok(PostgresOptions::parse(url)
        .map_err(Failure::from)?
        .connect()
        .await
        .map_err(Failure::from)?)
}

async fn may_create_schemas(client: &Client) -> anyhow::Result<()> {
    let sql =
        "SELECT has_database_privilege(current_database(), 'CREATE'), current_user::text, current_database()::text";
    let row = client.query_one(sql, &[]).await?;
    let (may, user, database): (bool, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if may {
        return Ok(());
    }
    let message = format!(
        "the user {user} may create neither a database nor a schema in {database}, and a bench works in nothing that is \
         there already; let it, such as by ALTER ROLE {user} CREATEDB"
    );
    Err(Failure::new(Exit::NotAllowed, message).into())
}

async fn drop_schemas(client: &Client, name: &str) -> anyhow::Result<()> {
    // A connection that is still at work would keep its tables.
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name = $1 AND usename = current_user AND pid <> pg_backend_pid()";
    client.query(sql, &[&name]).await?;
    let sql = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname::text, $1)";
    for row in client.query(sql, &[&name]).await? {
        let schema: String = row.try_get(0)?;
        client
            .batch_execute(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"))
            .await?;
    }
    Ok(())
}

impl Server {
    async fn ask(client: &Client) -> anyhow::Result<Server> {
        let sql = "SELECT split_part(current_setting('server_version'), ' ', 1),
                   coalesce(inet_server_addr() = inet_client_addr(), true), pg_backend_pid(),
                   (SELECT string_agg(name || '=' || current_setting(name), ', ' ORDER BY place)
                    FROM unnest(ARRAY['fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers'])
                    WITH ORDINALITY setting(name, place))";
        let row = client.query_one(sql, &[]).await?;
        let (version, near, backend): (String, bool, i32) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let settings: String = row.try_get(3)?;
        let place = if near { "on this machine" } else { "on another machine" };
        Ok(Server {
            settings: format!("PostgreSQL {version} {place}, {settings}"),
            postmaster: near.then(|| parent_of_backend(backend.unsigned_abs())).flatten(),
        })
    }
}

/// A schema of the place, with a store in it or anything else.
#[derive(Clone)]
pub(super) struct Schema {
    database: Arc<Database>,
    name: String,
}

impl Schema {
    /// The first one.
    pub(super) fn of(database: &Arc<Database>) -> Schema {
        let name = match database.home {
            Home::Database => SCHEMA.to_owned(),
            Home::Schemas => database.name.clone(),
        };
        Schema {
            database: Arc::clone(database),
            name,
        }
    }

    /// Another one.
    pub(super) fn beside(&self, name: &str) -> Schema {
        Schema {
            database: Arc::clone(&self.database),
            name: format!("{}_{name}", self.name),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The URL of a store here.
    pub(super) fn url(&self) -> String {
        self.database.url(&self.name)
    }

    /// Drops it with what is in it.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        let sql = format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.name);
        Ok(self.connect().await?.batch_execute(&sql).await?)
    }

    /// Does at once what the server does by itself within minutes of a change: clears away what is dead, and counts what
    /// is there.
    pub(super) async fn vacuum(&self) -> anyhow::Result<()> {
        let client = self.connect().await?;
        let sql = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1";
        for row in client.query(sql, &[&self.name]).await? {
            let table: String = row.try_get(0)?;
            client
                .batch_execute(&format!("VACUUM (ANALYZE) \"{}\".\"{table}\"", self.name))
                .await?;
        }
        Ok(())
    }

    /// A connection outside of any store.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        connect(&self.url()).await
    }
}

/// The URL of a server in its parts.
struct Address {
    given: String,
    /// The scheme, the user and the hosts.
    authority: String,
    database: String,
    /// The parameters, but for those that the bench sets itself.
    parameters: Vec<String>,
}

impl Address {
    fn of(url: &str) -> Address {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let hosts = base.find("://").map_or(0, |at| at + 3);
        let (authority, database) = match base[hosts..].find('/') {
            Some(at) => (&base[..hosts + at], &base[hosts + at + 1..]),
            None => (base, ""),
        };
        let ours = |pair: &&str| !pair.starts_with("schema=") && !pair.starts_with("application_name=");
        Address {
            given: url.to_owned(),
            authority: authority.to_owned(),
            database: database.to_owned(),
            parameters: query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .filter(ours)
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The URL of a store in a schema of another database, or of the same one.
    fn url(&self, database: Option<&str>, schema: &str, application: &str) -> String {
        let mut parameters = self.parameters.clone();
        parameters.push(format!("schema={schema}"));
        parameters.push(format!("application_name={application}"));
        let database = database.unwrap_or(&self.database);
        format!("{}/{database}?{}", self.authority, parameters.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_place_keeps_who_and_where_and_names_another_database_and_schema() {
        let url = |given: &str, database| Address::of(given).url(database, "s", "a");
        assert_eq!(
            url(
                "postgres://me:x%2Fy@h:5433,i/db?schema=mine&sslmode=require",
                Some("new")
            ),
            "postgres://me:x%2Fy@h:5433,i/new?sslmode=require&schema=s&application_name=a"
        );
        assert_eq!(
            url("postgresql://h", Some("new")),
            "postgresql://h/new?schema=s&application_name=a"
        );
        assert_eq!(
            url("postgres://h/db", None),
            "postgres://h/db?schema=s&application_name=a"
        );
    }
}
