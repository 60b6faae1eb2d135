//! Queues with settings: the verbs, and what a node remembers of them, and of breakers beside them, so that its claims need
//! not ask.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};
use pensum_core::order::OrderRule;
use pensum_core::queue::{Bucket, Closed, QUEUES_MAX, QueueCommand, QueueRecord, QueueSettings};
use pensum_core::store::{Call, Rejected};
use pensum_core::time::Span;
use pensum_core::{Name, NewTask, Time};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::ageing::Rules;
use super::breaker;
use super::covering::Breakers;
use super::error::Fault;
use super::names::Class;
use super::pool::{Durability, Pool, Statement, Tx, Value, text};
use super::row::{self, gate, micros};
use super::trial::{Doors, Trial};
use super::wake::Wake;
use super::width;

/// How old what a node remembers may be when runs end, where notices of changes do not come through.
pub(super) const AGE_MAX: Duration = Duration::from_secs(1);

/// The columns of a queue, in the order of [`read`].
pub(super) const COLUMNS: &str = "q.id, q.namespace, q.name, q.settings, q.paused_at, q.process_to, q.bucket, q.put_by,
    q.created_at, q.changed_at, q.version";

/// A queue from [`COLUMNS`], beginning at column `from`: its number, its namespace, and itself without what runs of it.
pub(super) fn read(row: &Row, from: usize) -> Result<(i32, Name, QueueRecord), Fault> {
    let at = |column: usize| from + column;
    let time = |column: usize| -> Result<Option<Time>, Fault> {
        Ok(row.try_get::<_, Option<i64>>(at(column))?.map(Time::from_micros))
    };
    let (id, name): (i32, Name) = (row.try_get(at(0))?, row.try_get::<_, &str>(at(2))?.into());
    let settings = serde_json::from_str(row.try_get(at(3))?)
        .map_err(|error| Fault::Damaged(format!("the settings of queue {name} are not readable ({error})")))?;
    let created_at = time(8)?.unwrap_or(Time::MAX);
    let record = QueueRecord {
        settings,
        paused_at: time(4)?,
        process_to: row.try_get(at(5))?,
        bucket: Bucket(row.try_get(at(6))?),
        put_by: row.try_get::<_, Option<&str>>(at(7))?.map(Name::from),
        changed_at: time(9)?.unwrap_or(created_at),
        version: row.try_get::<_, i64>(at(10))? as u64,
        ..QueueRecord::new(name, created_at)
    };
    Ok((id, row.try_get::<_, &str>(at(1))?.into(), record))
}

/// A queue as this node read it last.
pub(super) struct Known {
    pub(super) id: i32,
    pub(super) record: QueueRecord,
}

/// All queues and breakers at one version of both tables.
#[derive(Default)]
struct Snapshot {
    version: i64,
    by_place: HashMap<Name, HashMap<Name, Arc<Known>, RandomState>, RandomState>,
    breakers: Arc<Breakers>,
    rules: Arc<Rules>,
    /// Some queue lets more than one task of a key run at once.
    is_wide: bool,
}

/// Why a claim need not look at a queue.
#[derive(Clone, Copy)]
enum Shut {
    /// Its bucket is empty until then, unless the queue, at this version of all queues, has changed since: nothing else
    /// fills it sooner.
    Rate { version: i64, opens_at: Time },
    /// As many run as may, or all that may start does. A run that ends or a task that becomes ready is heard of; what is
    /// not is found when the time is up.
    Full { version: i64, opened: u64, until: Instant },
    /// Its bucket holds too little for its next task until then. A task that becomes ready may go before that one.
    Short {
        version: i64,
        opened: u64,
        opens_at: Time,
        until: Instant,
    },
    /// Another transaction holds it.
    Held(Instant),
}

/// What claims of this node remember of a queue with limits.
#[derive(Default)]
struct Door {
    /// Grows when it may have opened.
    opened: u64,
    shut: Option<Shut>,
}

/// What this node knows of queues and breakers.
#[derive(Default)]
pub(super) struct Queues {
    snapshot: RwLock<Arc<Snapshot>>,
    /// How many changes of breakers had been heard of when they were read for the end of a run, and when that was.
    followed: Mutex<Option<(u64, Instant)>>,
    pub(super) trials: Doors,
    doors: Mutex<HashMap<i32, Door, RandomState>>,
    /// When leases were counted last, they were many.
    pub(super) many_leases: AtomicBool,
}

/// What a claim has to do about the tasks of a class.
pub(super) enum Stand {
    /// Nothing.
    Open,
    /// To ask how many of the queue may start.
    Limited(Limited),
    /// To leave them out; by the clock until then.
    Shut(Option<Time>),
}

/// A queue with limits, as a claim sees it before it asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Limited {
    pub(super) id: i32,
    /// What was seen of it while this stood is so until it grows.
    opened: u64,
}

/// How claims see the queues at one moment.
pub(super) struct View<'a> {
    snapshot: Arc<Snapshot>,
    queues: &'a Queues,
    rooms: u64,
    trials: u64,
    now: Time,
}

impl View<'_> {
    /// The version that it is a view of.
    pub(super) fn version(&self) -> i64 {
        self.snapshot.version
    }

    /// The breakers at that version.
    pub(super) fn breakers(&self) -> &Arc<Breakers> {
        &self.snapshot.breakers
    }

    /// What is seen of half-open breakers is so until this number grows.
    pub(super) fn opened(&self) -> u64 {
        // Both only grow, so their sum stays only while both do.
        self.trials + self.rooms
    }

    /// What breakers let an executor start of a class.
    pub(super) fn trial(&self, class: &Class, executor: &Name) -> Trial {
        let known = (&**self.breakers(), self.version(), self.opened());
        self.queues.trials.trial(known, (class, executor), self.now)
    }

    /// How its queue stands.
    pub(super) fn stand(&self, class: &Class) -> Stand {
        let Some(known) = self.snapshot.of(class) else {
            return Stand::Open;
        };
        if known.record.is_open() {
            return Stand::Open;
        }
        if let Err(Closed::Paused { .. } | Closed::Manual) = known.record.room(0, self.now) {
            return Stand::Shut(None);
        }
        let (opened, shut) = match self.queues.doors.lock().get(&known.id) {
            Some(door) => (door.opened, door.shut),
            None => (0, None),
        };
        // Both only grow, so their sum stays only while both do.
        let opened = opened + self.rooms;
        match shut {
            Some(Shut::Rate { version, opens_at }) if version == self.version() && opens_at > self.now => {
                Stand::Shut(Some(opens_at))
            }
            Some(Shut::Full {
                version,
                opened: then,
                until,
            }) if version == self.version() && then == opened && until > Instant::now() => Stand::Shut(None),
            Some(Shut::Short {
                version,
                opened: then,
                opens_at,
                until,
            }) if version == self.version() && then == opened && opens_at > self.now && until > Instant::now() => {
                Stand::Shut(Some(opens_at))
            }
            Some(Shut::Held(until)) if until > Instant::now() => Stand::Shut(None),
            _ => Stand::Limited(Limited { id: known.id, opened }),
        }
    }
}

impl Snapshot {
    fn of(&self, class: &Class) -> Option<&Arc<Known>> {
        self.by_place.get(&class.namespace)?.get(&class.queue)
    }
}

impl Queues {
    pub(super) fn view(&self, wake: &Wake, now: Time) -> View<'_> {
        View {
            snapshot: Arc::clone(&self.snapshot.read()),
            queues: self,
            rooms: wake.rooms(),
            trials: self.trials.opened(),
            now,
        }
    }

    /// A run of this class has ended, or a task of it may have become ready. True when its queue has a limit, or it has a
    /// breaker, for which claims may leave it out.
    pub(super) fn reopen(&self, class: &Class) -> bool {
        let snapshot = self.snapshot.read();
        let is_tried = self.trials.reopen(&snapshot.breakers, class);
        let limited = |known: &&Arc<Known>| {
            let settings = &known.record.settings;
            settings.max_concurrent.is_some() || !settings.auto_start
        };
        let Some(known) = snapshot.of(class) else {
            return is_tried;
        };
        let mut doors = self.doors.lock();
        let is_short = matches!(
            doors.get(&known.id).and_then(|door| door.shut),
            Some(Shut::Short { .. })
        );
        if !is_short && !limited(&known) {
            return is_tried;
        }
        doors.entry(known.id).or_default().opened += 1;
        true
    }

    /// A task of this class was enqueued: it may go before the one for which its queue's bucket holds too little.
    pub(super) fn came(&self, class: &Class) {
        let snapshot = self.snapshot.read();
        if let Some(known) = snapshot.of(class).filter(|known| known.record.settings.rate.is_some())
            && let Some(door) = self.doors.lock().get_mut(&known.id)
            && matches!(door.shut, Some(Shut::Short { .. }))
        {
            door.opened += 1;
        }
    }

    /// Which of the queues of these tasks judge one of them before it is taken, and the version of all queues by which that
    /// is so.
    pub(super) fn judging<'a>(&self, namespace: &Name, tasks: impl Iterator<Item = &'a NewTask>) -> (i64, Vec<i32>) {
        let snapshot = self.snapshot.read();
        let Some(queues) = snapshot.by_place.get(namespace) else {
            return (snapshot.version, Vec::new());
        };
        let judging = tasks.filter_map(|task| {
            let known = queues.get(&task.spec.queue)?;
            known.record.settings.judges(task).then_some(known.id)
        });
        let mut judging: Vec<i32> = judging.collect();
        judging.sort_unstable();
        judging.dedup();
        (snapshot.version, judging)
    }

    /// The queues that drop what has waited too long, with their names and how long that is.
    pub(super) fn dropping_by_age(&self) -> Vec<(i32, Name, Span)> {
        let snapshot = self.snapshot.read();
        let all = snapshot.by_place.values().flat_map(HashMap::values);
        let aged = all.filter_map(|known| {
            let age = known.record.settings.drops_over()?;
            Some((known.id, known.record.name.clone(), age))
        });
        aged.collect()
    }

    /// The version of all queues that is known.
    pub(super) fn version(&self) -> i64 {
        self.snapshot.read().version
    }

    /// True when somebody put a queue, or a breaker is not closed.
    pub(super) fn any(&self) -> bool {
        let snapshot = self.snapshot.read();
        !snapshot.by_place.is_empty() || snapshot.breakers.any_tripped()
    }

    /// True when a queue has a claim order of its own.
    pub(super) fn has_rules(&self) -> bool {
        !self.snapshot.read().rules.is_empty()
    }

    /// True when a queue lets more than one task of a key run at once.
    pub(super) fn is_wide(&self) -> bool {
        self.snapshot.read().is_wide
    }

    /// Those that have.
    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.snapshot.read().rules)
    }

    /// How the tasks of a class stand in the claim order.
    pub(super) fn rule(&self, class: &Class) -> OrderRule {
        let snapshot = self.snapshot.read();
        match snapshot.rules.is_empty() {
            true => OrderRule::STRICT,
            false => (snapshot.of(class)).map_or(OrderRule::STRICT, |known| known.record.settings.order()),
        }
    }

    /// Reads queues again unless they are known at this version.
    pub(super) async fn catch_up(&self, pool: &Arc<Pool>, version: i64) -> Result<(), Fault> {
        if self.snapshot.read().version == version {
            return Ok(());
        }
        self.refresh(pool).await
    }

    /// The breakers, as they are remembered.
    pub(super) fn breakers(&self) -> Arc<Breakers> {
        Arc::clone(&self.snapshot.read().breakers)
    }

    /// Reads breakers again where others have been heard to change one, or may have without being heard.
    pub(super) async fn follow(&self, pool: &Arc<Pool>, wake: &Wake) -> Result<(), Fault> {
        let (heard, now) = (wake.breakers(), Instant::now());
        let is_known = |(then, read_at): (u64, Instant)| then == heard && (!wake.is_deaf() || now - read_at < AGE_MAX);
        if self.followed.lock().is_some_and(is_known) {
            return Ok(());
        }
        self.refresh(pool).await?;
        *self.followed.lock() = Some((heard, now));
        Ok(())
    }

    /// True when one of these has a bound that leases count against.
    pub(super) fn is_counted(&self, ids: &[i32]) -> bool {
        let snapshot = self.snapshot.read();
        let mut all = snapshot.by_place.values().flat_map(HashMap::values);
        all.any(|known| known.record.settings.max_concurrent.is_some() && ids.contains(&known.id))
    }

    /// Claims leave the queue out until it may have opened: because it is closed, or because (`None`) nothing of it is
    /// there that may start. A full one is looked at again after `poll`. `version` is that of all queues.
    pub(super) fn shut(&self, queue: Limited, version: i64, why: Option<Closed>, poll: Duration) {
        let shut = match why {
            Some(Closed::Rate { opens_at }) => Shut::Rate { version, opens_at },
            _ => Shut::Full {
                version,
                opened: queue.opened,
                until: Instant::now() + poll,
            },
        };
        self.doors.lock().entry(queue.id).or_default().shut = Some(shut);
    }

    /// Claims leave the queue out while its bucket holds too little for its next task, but look again after `poll`.
    pub(super) fn fall_short(&self, queue: Limited, version: i64, opens_at: Time, poll: Duration) {
        let shut = Shut::Short {
            version,
            opened: queue.opened,
            opens_at,
            until: Instant::now() + poll,
        };
        self.doors.lock().entry(queue.id).or_default().shut = Some(shut);
    }

    /// Claims leave the queue out for a while.
    pub(super) fn hold(&self, id: i32, time: Duration) {
        self.doors.lock().entry(id).or_default().shut = Some(Shut::Held(Instant::now() + time));
    }

    /// Reads all queues and breakers; the breakers may be newer than the version says, which the next claim sees.
    pub(super) async fn refresh(&self, pool: &Arc<Pool>) -> Result<(), Fault> {
        let sql = format!("SELECT v.value, {COLUMNS} FROM pensum.queue_version v LEFT JOIN pensum.queue q ON true");
        let say = |sql| Statement {
            sql,
            params: Vec::new(),
        };
        let tx = pool.begin(Durability::Relaxed).await?;
        let mut answers = tx.commit(&[say(&sql), say(&breaker::ALL)]).await?;
        let breakers = answers.pop().unwrap_or_default();
        let breakers = breakers.iter().map(breaker::read).collect::<Result<_, _>>()?;
        let mut fresh = Snapshot {
            breakers: Arc::new(Breakers::new(breakers)),
            ..Snapshot::default()
        };
        let mut rules = Rules::new();
        for row in answers.iter().flatten() {
            fresh.version = row.try_get(0)?;
            if row.try_get::<_, Option<i32>>(1)?.is_some() {
                let (id, namespace, record) = read(row, 1)?;
                let rule = record.settings.order();
                if rule != OrderRule::STRICT {
                    rules.insert((namespace.clone(), record.name.clone()), rule);
                }
                let place = fresh.by_place.entry(namespace).or_default();
                place.insert(record.name.clone(), Arc::new(Known { id, record }));
            }
        }
        fresh.is_wide = rules.values().any(|rule| rule.width() > 1);
        fresh.rules = Arc::new(rules);
        let mut snapshot = self.snapshot.write();
        // Lower after a failover that lost the last changes. An answer that was overtaken by a newer one is seen to be old by
        // the next claim.
        if fresh.version != snapshot.version {
            let all = fresh.by_place.values().flat_map(HashMap::values);
            let ids: HashSet<i32> = all.map(|known| known.id).collect();
            self.doors.lock().retain(|id, _| ids.contains(id));
            *snapshot = Arc::new(fresh);
        }
        Ok(())
    }
}

/// Leases by class; the parameter is how many are looked at.
pub(super) fn leases(limit: &str) -> String {
    format!(
        "SELECT class, count(*) FROM {} held GROUP BY class",
        row::classes_at(gate::RUNNING, limit)
    )
}

/// A verb at work: the table is locked against other verbs, the queue's row against claims as well.
struct Change {
    tx: Tx,
    found: Option<(i32, QueueRecord)>,
    queues: i64,
    running: u64,
    /// The newest row that a task has.
    newest: i64,
}

impl Change {
    async fn begin(inner: &Arc<Inner>, call: &Call, queue: &Name) -> Result<Change, Fault> {
        // Numbers that were taken ahead would belong to tasks that come after the command.
        inner.rows.forget().await;
        let place = || vec![Value::Text(Some(text(&call.namespace))), Value::Text(Some(text(queue)))];
        let say = |sql, params| Statement { sql, params };
        let lock = format!("SELECT {COLUMNS} FROM pensum.queue q WHERE q.namespace = $1 AND q.name = $2 FOR UPDATE");
        let running = format!(
            "SELECT coalesce(sum(held.count), 0)::bigint FROM ({}) held JOIN pensum.class c ON c.id = held.class
             WHERE c.namespace = $1 AND c.queue = $2",
            leases("ALL")
        );
        // The last number given out, and not a new one: a command that is repeated is to change nothing.
        let newest = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM pensum.task_row";
        let mut tx = inner.pool.begin(Durability::Acknowledged).await?;
        let answers = tx
            .pipeline(&[
                say("SELECT value FROM pensum.queue_version FOR UPDATE", Vec::new()),
                say(&lock, place()),
                say("SELECT count(*) FROM pensum.queue", Vec::new()),
                say(&running, place()),
                say(newest, Vec::new()),
            ])
            .await?;
        let number = |answer: usize| -> Result<i64, Fault> {
            let row = answers.get(answer).and_then(|rows| rows.first());
            Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0))
        };
        let found = match answers.get(1).and_then(|rows| rows.first()) {
            Some(row) => Some(read(row, 0)?),
            None => None,
        };
        Ok(Change {
            found: found.map(|(id, _, record)| (id, record)),
            queues: number(2)?,
            running: number(3)?.max(0) as u64,
            newest: number(4)?,
            tx,
        })
    }

    /// Writes the queue as it became, unless `act` refuses, or nothing changed.
    async fn carry_out(
        self,
        inner: &Arc<Inner>,
        call: &Call,
        queue: &Name,
        act: impl FnOnce(&mut QueueRecord, i64) -> Result<bool, Rejected>,
    ) -> Result<Result<QueueRecord, Rejected>, Fault> {
        let (id, mut record) = match self.found {
            Some((id, record)) => (Some(id), record),
            None if self.queues >= QUEUES_MAX as i64 => {
                self.tx.rollback().await?;
                return Ok(Err(Rejected::TooManyQueues));
            }
            None => (None, QueueRecord::new(queue.clone(), call.now)),
        };
        let width = record.settings.order().width();
        let changed = act(&mut record, self.newest);
        let is_other_width = record.settings.order().width() != width;
        record.running = self.running;
        match changed {
            Ok(changed) if changed || id.is_none() => {
                let mut statements = vec![write(call, id, &record), GROW];
                statements.splice(0..0, is_other_width.then_some(width::CHANGE));
                self.tx.commit(&statements).await?;
                inner.wake.ready();
                // What is enqueued next stands as it says. The queue has changed, whether that can be read now or not.
                if let Err(fault) = inner.queues.refresh(&inner.pool).await {
                    tracing::debug!(?fault, "queues could not be read after a change");
                }
                if is_other_width {
                    width::settle_all(inner, call.now).await;
                }
                Ok(Ok(record))
            }
            Ok(_) => {
                self.tx.rollback().await?;
                Ok(Ok(record))
            }
            Err(rejected) => {
                self.tx.rollback().await?;
                Ok(Err(rejected))
            }
        }
    }
}

/// Tells every claim that its view is old.
pub(super) const GROW: Statement<'static> = Statement {
    sql: "UPDATE pensum.queue_version SET value = value + 1",
    params: Vec::new(),
};

fn write<'a>(call: &'a Call, id: Option<i32>, record: &'a QueueRecord) -> Statement<'a> {
    let settings = serde_json::to_string(&record.settings).unwrap_or_else(|_| "{}".to_owned());
    let mut params = vec![
        Value::Text(Some(settings.into())),
        Value::Int8(micros(record.paused_at)),
        Value::Int8(record.process_to),
        Value::Int8(Some(record.bucket.0)),
        Value::Text(record.put_by.as_deref().map(text)),
        Value::Int8(Some(record.created_at.as_micros())),
        Value::Int8(Some(record.changed_at.as_micros())),
        Value::Int8(Some(record.version as i64)),
    ];
    let sql = match id {
        Some(id) => {
            params.push(Value::Int8(Some(i64::from(id))));
            "UPDATE pensum.queue SET settings = $1, paused_at = $2, process_to = $3, bucket = $4, put_by = $5,
             created_at = $6, changed_at = $7, version = $8 WHERE id = $9"
        }
        None => {
            params.push(Value::Text(Some(text(&call.namespace))));
            params.push(Value::Text(Some(text(&record.name))));
            "INSERT INTO pensum.queue(settings, paused_at, process_to, bucket, put_by, created_at, changed_at, version,
             namespace, name) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        }
    };
    Statement { sql, params }
}

/// Gives a queue settings.
pub(super) async fn put(
    inner: &Arc<Inner>,
    call: &Call,
    queue: &Name,
    settings: &QueueSettings,
    expected: Option<u64>,
) -> Result<Result<QueueRecord, Rejected>, Fault> {
    let change = Change::begin(inner, call, queue).await?;
    let act = |record: &mut QueueRecord, _| record.put(settings.clone(), expected, &call.actor, call.now);
    change.carry_out(inner, call, queue, act).await
}

/// Carries out a command.
pub(super) async fn command(
    inner: &Arc<Inner>,
    call: &Call,
    queue: &Name,
    command: QueueCommand,
) -> Result<Result<QueueRecord, Rejected>, Fault> {
    let change = Change::begin(inner, call, queue).await?;
    let act = |record: &mut QueueRecord, newest| record.command(command, newest, call.now);
    change.carry_out(inner, call, queue, act).await
}

/// Takes a queue's settings away.
pub(super) async fn delete(inner: &Arc<Inner>, call: &Call, queue: &Name) -> Result<Result<(), Rejected>, Fault> {
    let Change { mut tx, found, .. } = Change::begin(inner, call, queue).await?;
    let Some((id, _)) = found else {
        tx.rollback().await?;
        return Ok(Err(Rejected::NoQueue(queue.clone())));
    };
    let sql = "SELECT count(*) FROM pensum.live WHERE class = ANY(ARRAY(
                 SELECT id FROM pensum.class WHERE namespace = $1 AND queue = $2))";
    let (namespace, name) = (text(&call.namespace), text(queue));
    let rows = tx.query(sql, &[(&namespace, Type::TEXT), (&name, Type::TEXT)]).await?;
    let unfinished: i64 = rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(0);
    if unfinished > 0 {
        tx.rollback().await?;
        return Ok(Err(Rejected::QueueHasTasks {
            queue: queue.clone(),
            unfinished: unfinished as u64,
        }));
    }
    let gone = Statement {
        sql: "DELETE FROM pensum.queue WHERE id = $1",
        params: vec![Value::Int8(Some(i64::from(id)))],
    };
    tx.commit(&[gone, GROW]).await?;
    inner.wake.ready();
    Ok(Ok(()))
}

/// All queues with their namespaces, in the order of the bytes of both.
pub(super) async fn all(pool: &Arc<Pool>) -> Result<Vec<(Name, QueueRecord)>, Fault> {
    let sql = format!(r#"SELECT {COLUMNS} FROM pensum.queue q ORDER BY q.namespace COLLATE "C", q.name COLLATE "C""#);
    let rows = pool.read(&sql, &[]).await?;
    rows.iter()
        .map(|row| read(row, 0).map(|(_, namespace, queue)| (namespace, queue)))
        .collect()
}

/// The queues of a namespace that somebody put or commanded, by name.
pub(super) async fn list(pool: &Arc<Pool>, namespace: &str) -> Result<Vec<QueueRecord>, Fault> {
    let sql = format!(
        "SELECT {COLUMNS}, coalesce(r.running, 0) FROM pensum.queue q LEFT JOIN (
           SELECT c.queue, sum(held.count)::bigint AS running FROM ({}) held JOIN pensum.class c ON c.id = held.class
           WHERE c.namespace = $1 GROUP BY c.queue) r ON r.queue = q.name WHERE q.namespace = $1",
        leases("ALL")
    );
    let namespace = text(namespace);
    let mut queues = BTreeMap::new();
    for row in pool.read(&sql, &[(&namespace, Type::TEXT)]).await? {
        let (_, _, record) = read(&row, 0)?;
        let running = row.try_get::<_, i64>(11)?.max(0) as u64;
        queues.insert(record.name.clone(), QueueRecord { running, ..record });
    }
    Ok(queues.into_values().collect())
}
