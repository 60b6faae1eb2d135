//! Connections: how one is made, and a transaction on one.
//!
//! Nothing that a transaction needs is left in a session, and every setting is local to its transaction. So a pooler in
//! transaction mode may stand between. Where none does, what is sent again and again is prepared: see [`habits`](super::habits).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Connect, Hook, HookError, Manager, ManagerConfig, Object, ObjectId, PoolError, RecyclingMethod, Runtime,
};
use futures_util::FutureExt;
use futures_util::future::{join, join_all, poll_fn};
use pensum_core::seam::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::Fault;
use super::habits::{Doubts, Habits, is_direct, is_slow};
use super::options::PostgresOptions;
use super::tls;

/// How long a transaction may go without an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a verb waits for a free connection.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(10);
/// Sent along with the begin of a transaction that takes several round trips: a process that stops in the middle of one
/// must not keep for ever what it has locked.
const IDLE_MAX: &str = "; SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// A parameter with its type, so that no statement has to be prepared to learn it.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// What a commit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// On disk, and on the synchronous standbys, before it is answered.
    Acknowledged,
    /// Written out within a moment: its loss only repeats work.
    Relaxed,
}

/// Makes connections that say nothing when they end: what ended one is told to whoever was using it, and a server that
/// goes away ends all of them at once.
struct Connector {
    tls: MakeRustlsConnect,
}

impl Connect for Connector {
    fn connect(
        &self,
        config: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        let (config, tls) = (config.clone(), self.tls.clone());
        Box::pin(async move {
            let (client, connection) = config.connect(tls).await?;
            Ok((client, tokio::spawn(drive(connection))))
        })
    }
}

/// Carries a connection's traffic until it ends.
async fn drive<S, T>(mut connection: Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|ctx| connection.poll_message(ctx)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => tracing::debug!(%notice, "the server says"),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection ended");
                return;
            }
        }
    }
}

/// The connections of one store.
pub(super) struct Pool {
    inner: deadpool_postgres::Pool,
    /// As many as there are connections, but one: whoever has a transaction open and looks something up on a second
    /// connection finds one, in the end.
    long: Arc<Semaphore>,
    /// `None` for the schema `pensum`, which the SQL names.
    schema: Option<String>,
    /// The server, the database and the schema, for people.
    pub(super) location: String,
    /// The server's own default does not wait for the disk.
    careless: std::sync::atomic::AtomicBool,
    habits: Arc<Habits>,
    doubts: Doubts<ObjectId>,
}

impl Pool {
    pub(super) fn new(options: &PostgresOptions) -> Result<Pool, pensum_core::StoreError> {
        let manager = Manager::from_connect(
            options.config.clone(),
            Connector {
                tls: tls::connector(options)?,
            },
            ManagerConfig {
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let habits = Arc::new(Habits::new(options.prepare_threshold));
        let (known, config) = (Arc::clone(&habits), options.config.clone());
        let look = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let (known, config) = (Arc::clone(&known), config.clone());
            Box::pin(async move {
                if known.is_on() && !is_direct(&config, client).await.map_err(HookError::Backend)? {
                    known.give_up();
                }
                Ok(())
            })
        });
        let pool = deadpool_postgres::Pool::builder(manager)
            .max_size(options.pool_size)
            .wait_timeout(Some(CONNECTION_WAIT_MAX))
            .create_timeout(Some(CONNECTION_WAIT_MAX))
            .runtime(Runtime::Tokio1)
            .post_create(look)
            .pre_recycle(Hook::sync_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
                if client.is_closed() {
                    Err(HookError::message("closed"))
                } else {
                    Ok(())
                }
            }))
            .build()
            .map_err(|error| pensum_core::StoreError::Unavailable(format!("no connections: {error}")))?;
        Ok(Pool {
            inner: pool,
            long: Arc::new(Semaphore::new(options.pool_size.saturating_sub(1).max(1))),
            schema: (options.schema != "pensum").then(|| format!("\"{}\".", options.schema)),
            location: options.location(),
            careless: std::sync::atomic::AtomicBool::new(false),
            habits,
            doubts: Doubts::default(),
        })
    }

    pub(super) fn set_careless(&self, careless: bool) {
        self.careless.store(careless, std::sync::atomic::Ordering::Relaxed);
    }

    /// The SQL for this store's schema.
    pub(super) fn sql<'a>(&self, sql: &'a str) -> Cow<'a, str> {
        match &self.schema {
            None => Cow::Borrowed(sql),
            Some(schema) => Cow::Owned(sql.replace("pensum.", schema)),
        }
    }

    async fn connection(&self) -> Result<Object, Fault> {
        self.inner.get().await.map_err(|error| match error {
            PoolError::Closed => Fault::Closed,
            PoolError::Backend(error) => Fault::Db(error),
            PoolError::Timeout(_) => none_free(),
            other => Fault::Pool(other.to_string()),
        })
    }

    /// Begins a transaction that may take its time, and ask on other connections meanwhile.
    pub(super) async fn begin_long(self: &Arc<Pool>, durability: Durability) -> Result<Tx, Fault> {
        let permit = self.permit().await?;
        let mut tx = self.begin(durability).await?;
        tx.permit = Some(permit);
        Ok(tx)
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Fault> {
        let permit = Arc::clone(&self.long).acquire_owned();
        match tokio::time::timeout(CONNECTION_WAIT_MAX, permit).await {
            Ok(permit) => permit.map_err(|_| Fault::Closed),
            Err(_) => Err(none_free()),
        }
    }

    /// Begins a transaction, for which no other connection is asked for before its end. It is sent with the first
    /// statement.
    pub(super) async fn begin(self: &Arc<Pool>, durability: Durability) -> Result<Tx, Fault> {
        let client = self.connection().await?;
        let begin = match durability {
            Durability::Relaxed => {
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = off"
            }
            Durability::Acknowledged if self.careless.load(std::sync::atomic::Ordering::Relaxed) => {
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on"
            }
            Durability::Acknowledged => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        };
        Ok(Tx {
            client: Some(client),
            pool: Arc::clone(self),
            begin: Some(begin),
            permit: None,
        })
    }

    /// Begins the transaction of a claim, [`Durability::Relaxed`], in which the server plans nothing anew that it has one good
    /// plan for: planning a claim takes it twice as long as carrying it out. A plan that is made while there are few tasks must
    /// not read all of them once there are many, so it goes by indexes.
    pub(super) async fn begin_claim(self: &Arc<Pool>) -> Result<Tx, Fault> {
        let mut tx = self.begin(Durability::Relaxed).await?;
        tx.begin = Some(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = off; \
             SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off; SET LOCAL jit = off",
        );
        Ok(tx)
    }

    /// Begins a transaction that reads one moment of the store.
    pub(super) async fn snapshot(self: &Arc<Pool>) -> Result<Tx, Fault> {
        let permit = self.permit().await?;
        let client = self.connection().await?;
        let begin = Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        Ok(Tx {
            client: Some(client),
            pool: Arc::clone(self),
            begin,
            permit: Some(permit),
        })
    }

    /// Makes the commit of a transaction that began as [`Durability::Relaxed`] one that is acknowledged.
    pub(super) fn acknowledge(&self) -> Statement<'static> {
        Statement {
            sql: match self.careless.load(std::sync::atomic::Ordering::Relaxed) {
                true => "SET LOCAL synchronous_commit = on",
                false => "SET LOCAL synchronous_commit TO DEFAULT",
            },
            params: Vec::new(),
        }
    }

    /// One statement, in a transaction of its own that only reads.
    pub(super) async fn read(self: &Arc<Pool>, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Fault> {
        let client = self.connection().await?;
        // A statement that is given up half-way must not meet the next user of its connection.
        let mut guard = Tx {
            client: Some(client),
            pool: Arc::clone(self),
            begin: None,
            permit: None,
        };
        let sending = match &guard.client {
            Some(client) => Sending::new(self, client, sql, params.to_vec()).await?,
            None => return Err(Fault::Closed),
        };
        let rows = in_time(sending.query(guard.client()?)).await?;
        guard.release();
        Ok(rows)
    }

    pub(super) fn close(&self) {
        self.long.close();
        self.inner.close();
    }
}

fn none_free() -> Fault {
    Fault::Pool(format!(
        "no connection became free within {} s; the server may be down or slow, or pool_size is too small",
        CONNECTION_WAIT_MAX.as_secs()
    ))
}

async fn in_time<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER_TIME_MAX, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Fault::Silent),
    }
}

/// A statement on its way.
struct Sending<'a> {
    sql: Cow<'a, str>,
    params: Vec<Param<'a>>,
    prepared: Option<tokio_postgres::Statement>,
}

impl<'a> Sending<'a> {
    /// The statement in this store's schema, prepared where it is sent again and again.
    async fn new(pool: &Pool, client: &Object, sql: &'a str, params: Vec<Param<'a>>) -> Result<Sending<'a>, Fault> {
        let sql = pool.sql(sql);
        let prepared = match pool.habits.note(&sql) {
            true => {
                let types: Vec<Type> = params.iter().map(|(_, of)| of.clone()).collect();
                Some(in_time(client.prepare_typed_cached(&sql, &types)).await?)
            }
            false => None,
        };
        Ok(Sending { sql, params, prepared })
    }

    async fn query(&self, client: &Client) -> Result<Vec<Row>, tokio_postgres::Error> {
        let Some(prepared) = &self.prepared else {
            return client.query_typed(&self.sql, &self.params).await;
        };
        let values: Vec<&(dyn ToSql + Sync)> = self.params.iter().map(|(value, _)| *value).collect();
        client.query(prepared, &values).await
    }
}

/// A transaction. Dropped before its end, it takes its connection with it, so that no one else inherits it half-way.
pub(super) struct Tx {
    client: Option<Object>,
    pool: Arc<Pool>,
    /// Not sent yet.
    begin: Option<&'static str>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Tx {
    fn client(&self) -> Result<&Client, Fault> {
        match &self.client {
            Some(client) => Ok(client),
            None => Err(Fault::Closed),
        }
    }

    /// A statement; the first one carries the begin with it.
    pub(super) async fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Fault> {
        let begin = self.begin.take();
        let sql = self.pool.sql(sql);
        let client = self.client()?;
        match begin {
            None => in_time(client.query_typed(&sql, params)).await,
            Some(begin) => {
                let begin = [begin, IDLE_MAX].concat();
                let (begun, rows) =
                    in_time(async { Ok(join(client.batch_execute(&begin), client.query_typed(&sql, params)).await) })
                        .await?;
                begun?;
                Ok(rows?)
            }
        }
    }

    /// Several statements at once, in order; answers come back in order, or the first failure.
    pub(super) async fn pipeline(&mut self, statements: &[Statement<'_>]) -> Result<Vec<Vec<Row>>, Fault> {
        self.send(statements, false).await
    }

    async fn send(&mut self, statements: &[Statement<'_>], commit: bool) -> Result<Vec<Vec<Row>>, Fault> {
        let begin = self.begin.take().map(|begin| match commit {
            true => Cow::Borrowed(begin),
            false => Cow::Owned([begin, IDLE_MAX].concat()),
        });
        let pool = Arc::clone(&self.pool);
        let Some(client) = &self.client else {
            return Err(Fault::Closed);
        };
        let mut sendings = Vec::with_capacity(statements.len());
        for statement in statements {
            let params = statement.params.iter().map(Value::as_param).collect();
            sendings.push(Sending::new(&pool, client, statement.sql, params).await?);
        }
        let sent = tokio::time::Instant::now();
        let (begun, rows, committed) = in_time(async {
            let begin = async {
                match &begin {
                    Some(begin) => client.batch_execute(begin).await,
                    None => Ok(()),
                }
            };
            let all = join_all(sendings.iter().map(|sending| sending.query(client)));
            let commit = async {
                if commit {
                    client.batch_execute("COMMIT").await
                } else {
                    Ok(())
                }
            };
            let ((begun, rows), committed) = join(join(begin, all), commit).await;
            Ok((begun, rows, committed))
        })
        .await?;
        begun?;
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?;
        committed?;
        let size = rows
            .iter()
            .map(Vec::len)
            .chain(statements.iter().map(Statement::len))
            .max();
        if sendings.iter().any(|sending| sending.prepared.is_some())
            && is_slow(sent.elapsed(), size.unwrap_or(0))
            && pool.doubts.raise(Object::id(client), tokio::time::Instant::now())
        {
            // Nobody waits for it: polled once, it is on its way.
            let _ = client.batch_execute("DISCARD PLANS").now_or_never();
        }
        Ok(rows)
    }

    /// Sends the last statements and commits, in one round trip.
    pub(super) async fn commit(mut self, statements: &[Statement<'_>]) -> Result<Vec<Vec<Row>>, Fault> {
        let rows = self.send(statements, true).await?;
        self.release();
        Ok(rows)
    }

    /// Undoes everything.
    pub(super) async fn rollback(mut self) -> Result<(), Fault> {
        if self.begin.is_none() {
            in_time(self.client()?.batch_execute("ROLLBACK")).await?;
        }
        self.release();
        Ok(())
    }

    /// The connection goes back to the pool.
    fn release(&mut self) {
        drop(self.client.take());
        drop(self.permit.take());
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(client) = self.client.take()
            && self.begin.is_none()
        {
            drop(Object::take(client));
        }
    }
}

/// A statement and its values, to be sent with others.
pub(super) struct Statement<'a> {
    pub(super) sql: &'a str,
    pub(super) params: Vec<Value<'a>>,
}

impl Statement<'_> {
    /// How many rows it is about.
    fn len(&self) -> usize {
        self.params.first().map_or(0, Value::len)
    }
}

/// A parameter that owns or borrows what it carries.
pub(super) enum Value<'a> {
    Int8(Option<i64>),
    Text(Option<Cow<'a, str>>),
    Uuid(uuid::Uuid),
    Bytes(Vec<u8>),
    Int2s(Vec<Option<i16>>),
    Int4s(Vec<Option<i32>>),
    Int8s(Vec<Option<i64>>),
    Bools(Vec<Option<bool>>),
    Floats(Vec<Option<f64>>),
    Texts(Vec<Option<Cow<'a, str>>>),
    Uuids(Vec<Option<uuid::Uuid>>),
}

impl Value<'_> {
    fn len(&self) -> usize {
        match self {
            Value::Int8(_) | Value::Text(_) | Value::Uuid(_) | Value::Bytes(_) => 1,
            Value::Int2s(v) => v.len(),
            Value::Int4s(v) => v.len(),
            Value::Int8s(v) => v.len(),
            Value::Bools(v) => v.len(),
            Value::Floats(v) => v.len(),
            Value::Texts(v) => v.len(),
            Value::Uuids(v) => v.len(),
        }
    }

    /// The same, with copies of what was borrowed.
    pub(super) fn into_owned(self) -> Value<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Value::Int8(v) => Value::Int8(v),
            Value::Text(v) => Value::Text(v.map(own)),
            Value::Uuid(v) => Value::Uuid(v),
            Value::Bytes(v) => Value::Bytes(v),
            Value::Int2s(v) => Value::Int2s(v),
            Value::Int4s(v) => Value::Int4s(v),
            Value::Int8s(v) => Value::Int8s(v),
            Value::Bools(v) => Value::Bools(v),
            Value::Floats(v) => Value::Floats(v),
            Value::Texts(v) => Value::Texts(v.into_iter().map(|t| t.map(own)).collect()),
            Value::Uuids(v) => Value::Uuids(v),
        }
    }

    pub(super) fn as_param(&self) -> Param<'_> {
        match self {
            Value::Int8(v) => (v, Type::INT8),
            Value::Text(v) => (v, Type::TEXT),
            Value::Uuid(v) => (v, Type::UUID),
            Value::Bytes(v) => (v, Type::BYTEA),
            Value::Int2s(v) => (v, Type::INT2_ARRAY),
            Value::Int4s(v) => (v, Type::INT4_ARRAY),
            Value::Int8s(v) => (v, Type::INT8_ARRAY),
            Value::Bools(v) => (v, Type::BOOL_ARRAY),
            Value::Floats(v) => (v, Type::FLOAT8_ARRAY),
            Value::Texts(v) => (v, Type::TEXT_ARRAY),
            Value::Uuids(v) => (v, Type::UUID_ARRAY),
        }
    }
}

/// The parameters of a statement that is sent by itself.
pub(super) fn as_params<'a>(values: &'a [Value<'_>]) -> Vec<Param<'a>> {
    values.iter().map(Value::as_param).collect()
}

/// Text as PostgreSQL takes it: a NUL character, which it refuses, becomes the replacement character.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{FFFD}"))
    } else {
        Cow::Borrowed(text)
    }
}
