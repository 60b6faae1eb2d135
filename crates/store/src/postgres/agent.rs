//! Agents: the verbs. Whoever changes one, or claims for it, locks its row first; what happens to the leases of its session
//! happens in the same transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use pensum_core::agent::{AGENTS_MAX, AgentCommand, AgentRecord, AgentSettings};
use pensum_core::store::{Applied, Call, Rejected};
use pensum_core::transition::{Event, Report};
use pensum_core::{ErrorInfo, LeaseId, Name, NodeId, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::pool::{Durability, Pool, Statement, Value, text};
use super::reap::blame;
use super::row::{LiveRow, micros};
use super::step::{Facts, Work};

/// The columns of an agent, in the order of [`read`].
pub(super) const COLUMNS: &str =
    "a.namespace, a.name, a.settings, a.session, a.fenced, a.draining_at, a.seen_at, a.put_by,
    a.created_at, a.changed_at, a.version";
/// How many they are.
pub(super) const COLUMNS_COUNT: usize = 11;
/// What holds for the leases of a session; by an index of these alone.
pub(super) const LEASED: &str = "(l.flags & 16777216) <> 0 AND l.node";

/// How many leases the agent's session has.
static RUNNING: LazyLock<String> =
    LazyLock::new(|| format!("(SELECT count(*) FROM pensum.live l WHERE {LEASED} = a.session)"));
/// One agent, locked.
static LOCK: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {COLUMNS} FROM pensum.agent a WHERE a.namespace = $1 AND a.name = $2 FOR UPDATE"));
/// Leases of sessions.
static LEASES: LazyLock<String> =
    LazyLock::new(|| format!("SELECT l.row FROM pensum.live l WHERE {LEASED} = $1 ORDER BY l.row"));

/// An agent from [`COLUMNS`]: its namespace, and itself without what it runs.
pub(super) fn read(row: &Row) -> Result<(Name, AgentRecord), Fault> {
    let time = |column: usize| -> Result<Option<Time>, Fault> {
        Ok(row.try_get::<_, Option<i64>>(column)?.map(Time::from_micros))
    };
    let name: Name = row.try_get::<_, &str>(1)?.into();
    let settings: AgentSettings = serde_json::from_str(row.try_get(2)?)
        .map_err(|error| Fault::Damaged(format!("the settings of agent {name} are not readable ({error})")))?;
    let session = |id: i64| NodeId(id as u64);
    let fenced: Vec<i64> = row.try_get(4)?;
    let record = AgentRecord {
        name,
        settings,
        session: row.try_get::<_, Option<i64>>(3)?.map(session),
        fenced: fenced.into_iter().map(session).collect(),
        draining_at: time(5)?,
        seen_at: time(6)?,
        running: 0,
        put_by: row.try_get::<_, &str>(7)?.into(),
        created_at: Time::from_micros(row.try_get(8)?),
        changed_at: Time::from_micros(row.try_get(9)?),
        version: row.try_get::<_, i64>(10)? as u64,
    };
    Ok((row.try_get::<_, &str>(0)?.into(), record))
}

fn read_running(row: &Row, column: usize) -> Result<AgentRecord, Fault> {
    let (_, record) = read(row)?;
    let running = row.try_get::<_, i64>(column)?.max(0) as u64;
    Ok(AgentRecord { running, ..record })
}

/// The parameters of one that is written: its place first, then the rest of [`COLUMNS`].
pub(super) fn values<'a>(namespace: &'a str, record: &'a AgentRecord) -> Vec<Value<'a>> {
    let settings = serde_json::to_string(&record.settings).unwrap_or_else(|_| "{}".to_owned());
    vec![
        Value::Text(Some(text(namespace))),
        Value::Text(Some(text(&record.name))),
        Value::Text(Some(settings.into())),
        Value::Int8(record.session.map(|session| session.0 as i64)),
        Value::Int8s(record.fenced.iter().map(|session| Some(session.0 as i64)).collect()),
        Value::Int8(micros(record.draining_at)),
        Value::Int8(micros(record.seen_at)),
        Value::Text(Some(text(&record.put_by))),
        Value::Int8(Some(record.created_at.as_micros())),
        Value::Int8(Some(record.changed_at.as_micros())),
        Value::Int8(Some(record.version as i64)),
    ]
}

/// Adds one with [`values`].
pub(super) const INSERT: &str =
    "INSERT INTO pensum.agent(namespace, name, settings, session, fenced, draining_at, seen_at,
    put_by, created_at, changed_at, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
/// Changes one to [`values`].
const UPDATE: &str = "UPDATE pensum.agent SET settings = $3, session = $4, fenced = $5, draining_at = $6, seen_at = $7,
    put_by = $8, created_at = $9, changed_at = $10, version = $11 WHERE namespace = $1 AND name = $2";

/// The same, with what it carries for as long as the transaction needs.
fn write(sql: &'static str, namespace: &str, record: &AgentRecord) -> Statement<'static> {
    let params = values(namespace, record).into_iter().map(Value::into_owned).collect();
    Statement { sql, params }
}

/// A verb at work: the agent is locked, and the leases of its session at hand.
struct Change {
    work: Work,
    namespace: Name,
    record: Option<AgentRecord>,
    /// The rows that its session has leased.
    leases: Vec<i64>,
    now: Time,
}

impl Change {
    async fn begin(inner: &Arc<Inner>, call: &Call, agent: &Name) -> Result<Change, Fault> {
        let mut work = Work::begin(inner, Durability::Acknowledged, call.now).await?;
        let place = vec![Value::Text(Some(text(&call.namespace))), Value::Text(Some(text(agent)))];
        let lock = Statement {
            sql: &LOCK,
            params: place,
        };
        let found = work.tx.pipeline(&[lock]).await?.pop().unwrap_or_default();
        let record = found.first().map(read).transpose()?.map(|(_, record)| record);
        let mut change = Change {
            work,
            namespace: call.namespace.clone(),
            record,
            leases: Vec::new(),
            now: call.now,
        };
        change.look_for_leases().await?;
        Ok(change)
    }

    /// A statement after the one that waited for the lock: nobody leases anything for the session meanwhile.
    async fn look_for_leases(&mut self) -> Result<(), Fault> {
        if let Some(session) = self.record.as_ref().and_then(|record| record.session) {
            let id = session.0 as i64;
            let found = self.work.tx.query(&LEASES, &[(&id, Type::INT8)]).await?;
            self.leases = found.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// Ends the leases of the session, each as `how` says.
    async fn end_leases(
        &mut self,
        session: NodeId,
        how: impl Fn(&LiveRow, LeaseId) -> (Event, Option<ErrorInfo>),
    ) -> Result<(), Fault> {
        let (work, rows) = (&mut self.work, std::mem::take(&mut self.leases));
        if rows.is_empty() {
            return Ok(());
        }
        work.load_to_end(&rows).await?;
        work.look_ahead(&rows).await?;
        for row in rows {
            let Some((_, live)) = work.live(row) else { continue };
            let Some(lease) = live.life.lease.filter(|lease| lease.node == session) else {
                continue;
            };
            let (event, error) = how(live, lease.id);
            let facts = Facts {
                error,
                ..Facts::default()
            };
            // What holds a lease can lose it.
            let _ = work.happen(row, &event, facts, &mut Applied::default()).await?;
        }
        Ok(())
    }

    /// Writes everything, tells whoever has to know, and answers the agent as it became.
    async fn commit(self, statement: Statement<'static>, record: AgentRecord) -> Result<AgentRecord, Fault> {
        let (inner, namespace, before) = (Arc::clone(&self.work.inner), self.namespace, self.record);
        let (mut work, now) = (self.work, self.now);
        work.extra.push(statement);
        work.commit().await?;
        inner.preferred.note(&namespace, &record);
        // That it goes on being heard is no news.
        let same = |before: AgentRecord| {
            before.is_alive(now) == record.is_alive(now)
                && (before.version, before.session) == (record.version, record.session)
        };
        if !before.is_some_and(same) {
            inner.wake.agent(&namespace, &record.name);
        }
        let running = self.leases.len() as u64;
        Ok(AgentRecord { running, ..record })
    }

    async fn refuse<T>(self, rejected: Rejected) -> Result<Result<T, Rejected>, Fault> {
        self.work.tx.rollback().await?;
        Ok(Err(rejected))
    }
}

/// Registers an agent, or changes what is registered.
pub(super) async fn put(
    inner: &Arc<Inner>,
    call: &Call,
    agent: &Name,
    settings: &AgentSettings,
) -> Result<Result<AgentRecord, Rejected>, Fault> {
    let mut change = Change::begin(inner, call, agent).await?;
    if change.record.is_none() {
        // Of those that register at once, one after the other is counted.
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended('pensum.agent', 0))";
        change.work.tx.query(lock, &[]).await?;
        let (namespace, name) = (text(&call.namespace), text(agent));
        let place = [(&namespace as _, Type::TEXT), (&name as _, Type::TEXT)];
        let found = change.work.tx.query(&LOCK, &place).await?;
        change.record = found.first().map(read).transpose()?.map(|(_, record)| record);
        change.look_for_leases().await?;
    }
    let Some(mut record) = change.record.clone() else {
        let rows = change.work.tx.query("SELECT count(*) FROM pensum.agent", &[]).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        if count >= AGENTS_MAX as i64 {
            return change.refuse(Rejected::TooManyAgents).await;
        }
        let record = AgentRecord::new(agent.clone(), settings.clone(), call.actor.clone(), call.now);
        let statement = write(INSERT, &call.namespace, &record);
        return Ok(Ok(change.commit(statement, record).await?));
    };
    record.put(settings.clone(), &call.actor, call.now);
    let statement = write(UPDATE, &call.namespace, &record);
    Ok(Ok(change.commit(statement, record).await?))
}

/// Carries out a command.
pub(super) async fn command(
    inner: &Arc<Inner>,
    call: &Call,
    agent: &Name,
    command: AgentCommand,
) -> Result<Result<AgentRecord, Rejected>, Fault> {
    let change = Change::begin(inner, call, agent).await?;
    let Some(mut record) = change.record.clone() else {
        return change.refuse(Rejected::NoAgent(agent.clone())).await;
    };
    if !record.command(command, call.now) {
        record.running = change.leases.len() as u64;
        change.work.tx.rollback().await?;
        return Ok(Ok(record));
    }
    let statement = write(UPDATE, &call.namespace, &record);
    Ok(Ok(change.commit(statement, record).await?))
}

/// Forgets an agent.
pub(super) async fn delete(inner: &Arc<Inner>, call: &Call, agent: &Name) -> Result<Result<(), Rejected>, Fault> {
    let mut change = Change::begin(inner, call, agent).await?;
    let Some(record) = change.record.clone() else {
        return change.refuse(Rejected::NoAgent(agent.clone())).await;
    };
    if let Some(session) = record.session {
        change.end_leases(session, |_, _| (Event::LeaseExpired, None)).await?;
    }
    let gone = Statement {
        sql: "DELETE FROM pensum.agent WHERE namespace = $1 AND name = $2",
        params: vec![
            Value::Text(Some(text(&call.namespace))).into_owned(),
            Value::Text(Some(text(agent))).into_owned(),
        ],
    };
    change.work.extra.push(gone);
    change.work.commit().await?;
    inner.wake.agent(&call.namespace, agent);
    Ok(Ok(()))
}

/// Opens a session, or goes on with the present one.
pub(super) async fn open(
    inner: &Arc<Inner>,
    call: &Call,
    agent: &Name,
    session: NodeId,
) -> Result<Result<AgentRecord, Rejected>, Fault> {
    let mut change = Change::begin(inner, call, agent).await?;
    let Some(mut record) = change.record.clone() else {
        return change.refuse(Rejected::NoAgent(agent.clone())).await;
    };
    let died_at = record.seen_at.unwrap_or(call.now);
    let replaced = match record.open(session, call.now) {
        Ok(replaced) => replaced,
        Err(rejected) => return change.refuse(rejected).await,
    };
    if let Some(replaced) = replaced {
        let died = |live: &LiveRow, _| {
            let error = ErrorInfo::agent_crashed(agent);
            (Event::NodeDied(blame(live, died_at)), Some(error))
        };
        change.end_leases(replaced, died).await?;
    }
    let statement = write(UPDATE, &call.namespace, &record);
    Ok(Ok(change.commit(statement, record).await?))
}

/// Closes a session.
pub(super) async fn close(
    inner: &Arc<Inner>,
    call: &Call,
    agent: &Name,
    session: NodeId,
) -> Result<Result<(), Rejected>, Fault> {
    let mut change = Change::begin(inner, call, agent).await?;
    let Some(mut record) = change.record.clone() else {
        return change.refuse(Rejected::NoAgent(agent.clone())).await;
    };
    if let Err(rejected) = record.close(session) {
        return change.refuse(rejected).await;
    }
    let released = |_: &LiveRow, lease| (Event::Holder(lease, Report::Released), None);
    change.end_leases(session, released).await?;
    let statement = write(UPDATE, &call.namespace, &record);
    change.commit(statement, record).await?;
    Ok(Ok(()))
}

/// Notes that an agent is heard; where a session is named, only if that is the present one. The row stays locked. Answers
/// the row by [`COLUMNS`], and how many leases it has.
static HEAR: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE pensum.agent a SET seen_at = greatest(a.seen_at, $3)
         WHERE a.namespace = $1 AND a.name = $2 AND ($4::bigint IS NULL OR a.session = $4) RETURNING {COLUMNS}, {}",
        *RUNNING
    )
});

pub(super) fn hear(namespace: &str, agent: &str, session: Option<NodeId>, now: Time) -> Statement<'static> {
    Statement {
        sql: &HEAR,
        params: vec![
            Value::Text(Some(text(namespace))).into_owned(),
            Value::Text(Some(text(agent))).into_owned(),
            Value::Int8(Some(now.as_micros())),
            Value::Int8(session.map(|session| session.0 as i64)),
        ],
    }
}

/// Why [`hear`] has found no agent.
pub(super) async fn refusal(pool: &Arc<Pool>, namespace: &str, agent: &Name) -> Result<Rejected, Fault> {
    let (namespace, name) = (text(namespace), text(agent));
    let sql = "SELECT 1 FROM pensum.agent WHERE namespace = $1 AND name = $2";
    let params = [(&namespace as _, Type::TEXT), (&name as _, Type::TEXT)];
    Ok(match pool.read(sql, &params).await?.is_empty() {
        true => Rejected::NoAgent(agent.clone()),
        false => Rejected::SessionFenced(agent.clone()),
    })
}

/// Notes that an agent is heard.
pub(super) async fn beat(
    inner: &Arc<Inner>,
    call: &Call,
    agent: &Name,
    session: Option<NodeId>,
) -> Result<Result<AgentRecord, Rejected>, Fault> {
    let tx = inner.pool.begin(Durability::Relaxed).await?;
    let answers = tx.commit(&[hear(&call.namespace, agent, session, call.now)]).await?;
    match answers.iter().flatten().next() {
        Some(row) => {
            let record = read_running(row, COLUMNS_COUNT)?;
            inner.preferred.note(&call.namespace, &record);
            Ok(Ok(record))
        }
        None => Ok(Err(refusal(&inner.pool, &call.namespace, agent).await?)),
    }
}

/// The agents of a namespace, by name.
pub(super) async fn list(pool: &Arc<Pool>, namespace: &str) -> Result<Vec<AgentRecord>, Fault> {
    let sql = format!(
        "SELECT {COLUMNS}, {} FROM pensum.agent a WHERE a.namespace = $1",
        *RUNNING
    );
    let namespace = text(namespace);
    let mut agents = BTreeMap::new();
    for row in pool.read(&sql, &[(&namespace, Type::TEXT)]).await? {
        let record = read_running(&row, COLUMNS_COUNT)?;
        agents.insert(record.name.clone(), record);
    }
    Ok(agents.into_values().collect())
}

/// All agents with their namespaces, in the order of the bytes of both, as a copy carries them.
pub(super) async fn all(pool: &Arc<Pool>) -> Result<Vec<(Name, AgentRecord)>, Fault> {
    let sql = format!(r#"SELECT {COLUMNS} FROM pensum.agent a ORDER BY a.namespace COLLATE "C", a.name COLLATE "C""#);
    let rows = pool.read(&sql, &[]).await?;
    rows.iter()
        .map(|row| read(row).map(|(namespace, agent)| (namespace, agent.registration())))
        .collect()
}

/// The agents of which these nodes are the present sessions, locked against nothing.
pub(super) fn of_sessions(sessions: &[i64]) -> Statement<'static> {
    static OF_SESSIONS: LazyLock<String> =
        LazyLock::new(|| format!("SELECT {COLUMNS} FROM pensum.agent a WHERE a.session = ANY($1)"));
    Statement {
        sql: &OF_SESSIONS,
        params: vec![Value::Int8s(sessions.iter().copied().map(Some).collect())],
    }
}

/// These agents, as far as there are any.
pub(super) fn of_places(places: &[(Name, Name)]) -> Statement<'_> {
    static OF_PLACES: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT {COLUMNS} FROM unnest($1::text[], $2::text[]) AS given(namespace, name)
             JOIN pensum.agent a ON a.namespace = given.namespace AND a.name = given.name"
        )
    });
    Statement {
        sql: &OF_PLACES,
        params: vec![
            Value::Texts(places.iter().map(|(namespace, _)| Some(text(namespace))).collect()),
            Value::Texts(places.iter().map(|(_, name)| Some(text(name))).collect()),
        ],
    }
}
