//! The URL of a store on PostgreSQL, and what it says.

use std::path::PathBuf;
use std::time::Duration;

use pensum_core::StoreError;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::error::Fault;
use super::habits::THRESHOLD_DEFAULT;
use super::tls;

/// Connections that a store keeps at most when its URL does not say.
pub(super) const POOL_SIZE_DEFAULT: usize = 10;
/// The schema when the URL does not say.
pub(super) const SCHEMA_DEFAULT: &str = "pensum";
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long sent data may stay unacknowledged by the server's machine before the connection counts as broken.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// How the server's certificate is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verification {
    /// Encrypted, but to whoever answers (`sslmode=require`, as in libpq).
    None,
    /// By a known authority (`verify-ca`) — and for this host (`verify-full`).
    Authority,
    Full,
}

/// Where a store is and how to reach it.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    pub(super) config: tokio_postgres::Config,
    /// The schema that holds the tables.
    pub schema: String,
    /// Connections at most.
    pub pool_size: usize,
    /// How often a statement is sent before it is prepared; zero: none ever is.
    pub prepare_threshold: u32,
    pub(super) verification: Verification,
    pub(super) root_certificates: Option<PathBuf>,
}

fn wrong(what: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("the store's URL: {what}"))
}

/// Refuses what would have to be quoted, or is PostgreSQL's own.
pub(super) fn check_schema(schema: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if schema.is_empty() || schema.len() > 63 || !schema.chars().all(fits) || schema.starts_with("pg_") {
        return Err(format!(
            "schema={schema} must be 1 to 63 of a–z, 0–9 and _, and must not begin with pg_"
        ));
    }
    Ok(())
}

impl PostgresOptions {
    /// Reads `postgres://USER:PASSWORD@HOST:PORT[,HOST:PORT…]/DATABASE?…`. Beside the parameters of libpq that
    /// tokio-postgres knows: `schema` ([`SCHEMA_DEFAULT`]), `pool_size` ([`POOL_SIZE_DEFAULT`]), `prepare_threshold` ([`THRESHOLD_DEFAULT`]; zero
    /// prepares nothing), `sslmode` with all of
    /// libpq's values, and `sslrootcert` (a PEM file; the machine's own authorities without it).
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] that says which part of the URL is wrong. It never repeats the password.
    pub fn parse(url: &str) -> Result<PostgresOptions, StoreError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut schema = SCHEMA_DEFAULT.to_owned();
        let mut pool_size = POOL_SIZE_DEFAULT;
        let mut prepare_threshold = THRESHOLD_DEFAULT;
        let mut verification = Verification::None;
        let mut root_certificates = None;
        let mut rest: Vec<String> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "schema" => schema = value.to_owned(),
                "pool_size" => {
                    pool_size = value
                        .parse()
                        .ok()
                        .filter(|n| (2..=1000).contains(n))
                        .ok_or_else(|| wrong(format!("pool_size={value} is not a number from 2 to 1000")))?;
                }
                "prepare_threshold" => {
                    prepare_threshold = value
                        .parse()
                        .map_err(|_| wrong(format!("prepare_threshold={value} is not a number from 0 on")))?;
                }
                "sslrootcert" => root_certificates = Some(PathBuf::from(value.replace("%2F", "/"))),
                "sslmode" => {
                    let mode = match value {
                        "disable" | "prefer" | "require" => value,
                        "allow" => "prefer",
                        "verify-ca" => {
                            verification = Verification::Authority;
                            "require"
                        }
                        "verify-full" => {
                            verification = Verification::Full;
                            "require"
                        }
                        _ => {
                            return Err(wrong(format!(
                                "sslmode={value} is none of disable, prefer, require, verify-ca, verify-full"
                            )));
                        }
                    };
                    rest.push(format!("sslmode={mode}"));
                }
                _ => rest.push(pair.to_owned()),
            }
        }
        check_schema(&schema).map_err(wrong)?;
        let url = if rest.is_empty() {
            base.to_owned()
        } else {
            format!("{base}?{}", rest.join("&"))
        };
        let mut config: tokio_postgres::Config = url.parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error)
                .map(|c| format!(": {c}"))
                .unwrap_or_default();
            wrong(format!("{error}{cause}; write postgres://USER@HOST:PORT/DATABASE"))
        })?;
        if config.get_hosts().is_empty() {
            return Err(wrong("no host; write postgres://USER@HOST:PORT/DATABASE"));
        }
        if config.get_hosts().len() > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIME_MAX);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(UNACKNOWLEDGED_MAX);
        }
        config.keepalives_idle(KEEPALIVE_IDLE);
        if config.get_application_name().is_none() {
            config.application_name("pensum");
        }
        Ok(PostgresOptions {
            config,
            schema,
            pool_size,
            prepare_threshold,
            verification,
            root_certificates,
        })
    }

    /// A connection outside of any store's pool, for what no verb of a store does.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached or lets nobody in.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, StoreError> {
        let connected = self.config.connect(tls::connector(self)?).await;
        let (client, connection) = connected.map_err(|error| Fault::Db(error).describe(&self.location()))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The server, the database and the schema, for people; without the password.
    pub fn location(&self) -> String {
        let ports = self.config.get_ports();
        let hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .enumerate()
            .map(|(at, host)| {
                let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    Host::Unix(path) => format!("{}:{port}", path.display()),
                }
            })
            .collect();
        let database = self
            .config
            .get_dbname()
            .or(self.config.get_user())
            .unwrap_or("postgres");
        let schema = match self.schema.as_str() {
            SCHEMA_DEFAULT => String::new(),
            other => format!("?schema={other}"),
        };
        format!("postgres://{}/{database}{schema}", hosts.join(","))
    }

    pub(super) fn wants_tls(&self) -> bool {
        self.config.get_ssl_mode() != SslMode::Disable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_location_shows_every_host_and_no_password() {
        let options =
            PostgresOptions::parse("postgres://me:secret@a:5433,b:5434/work?schema=jobs&pool_size=4").unwrap();
        assert_eq!(options.location(), "postgres://a:5433,b:5434/work?schema=jobs");
        assert_eq!((options.pool_size, options.schema.as_str()), (4, "jobs"));
        assert_eq!(options.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    }

    #[test]
    fn a_wrong_part_of_the_url_is_named() {
        let says = |url: &str| PostgresOptions::parse(url).unwrap_err().to_string();
        assert!(says("postgres://h/db?schema=Up").contains("schema=Up"));
        assert!(says("postgres://h/db?pool_size=0").contains("pool_size=0"));
        assert!(says("postgres://h/db?sslmode=maybe").contains("verify-full"));
        assert!(says("postgres://h:port/db").contains("postgres://USER@HOST:PORT/DATABASE"));
        assert!(!says("postgres://me:secret@h:port/db").contains("secret"));
    }
}
