//! Every invariant of the store, checked at one moment of it: each violation one sentence.
//!
//! The rows are looked at in windows, so that neither this program nor any one statement ever has to do with all of them.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use pensum_core::agent::SESSIONS_FENCED_MAX;
use pensum_core::store::{VIOLATIONS_MAX, Verified};
use pensum_core::{State, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::counts::{Cells, counters};
use super::error::Fault;
use super::pool::{Pool, Statement, Tx, Value};
use super::row::{Cell, LIVE, LIVE_LIST, LiveRow, flag, gate, mark};
use super::{agent, breaker, queue};

/// How many tasks a window spans.
const WINDOW: i64 = 20_000;
/// How many unfinished tasks are read at once.
const PAGE: i64 = 2_000;
/// How many keys are looked at in one statement.
const KEYS: i64 = 10_000;
/// After this time a change of a queue has come to all keys, however many there are.
const SETTLED_MICROS: i64 = 60_000_000;

/// Queries that find nothing in a sound store among the rows in `($1, $2]`; each row is the violation's one number. Both
/// sides of a comparison name the window: else the planner may read all of one to compare it with a part of the other.
const CHECKS: [(&str, &str); 20] = [
    (
        "SELECT t.row FROM pensum.task t WHERE t.row > $1 AND t.row <= $2
         AND NOT EXISTS (SELECT 1 FROM pensum.live l WHERE l.row = t.row AND l.row > $1 AND l.row <= $2)
         AND NOT EXISTS (SELECT 1 FROM pensum.outcome o WHERE o.row = t.row AND o.row > $1 AND o.row <= $2)",
        "task {} is neither unfinished nor finished",
    ),
    (
        "SELECT l.row FROM pensum.live l JOIN pensum.outcome o ON o.row = l.row
         WHERE l.row > $1 AND l.row <= $2 AND o.row > $1 AND o.row <= $2",
        "task {} is both unfinished and finished",
    ),
    (
        "SELECT l.row FROM pensum.live l WHERE l.row > $1 AND l.row <= $2
         AND NOT EXISTS (SELECT 1 FROM pensum.task t WHERE t.row = l.row AND t.row > $1 AND t.row <= $2)",
        "unfinished row {} has no task",
    ),
    (
        "SELECT o.row FROM pensum.outcome o WHERE o.row > $1 AND o.row <= $2
         AND NOT EXISTS (SELECT 1 FROM pensum.task t WHERE t.row = o.row AND t.row > $1 AND t.row <= $2)",
        "finished row {} has no task",
    ),
    (
        "SELECT o.row FROM pensum.outcome o WHERE o.row > $1 AND o.row <= $2 AND o.state NOT IN (3, 4, 5)",
        "finished row {} is in a state that is not an end",
    ),
    (
        "SELECT l.row FROM pensum.live l WHERE l.row > $1 AND l.row <= $2 AND l.state IN (3, 4, 5)",
        "unfinished row {} is in a state that is an end",
    ),
    (
        "SELECT t.row FROM pensum.task t WHERE t.row > $1 AND t.row <= $2
         AND ('x' || right(t.id::text, 10))::bit(40)::bigint <> t.row",
        "the id of the task in row {} names another row",
    ),
    (
        "SELECT t.row FROM pensum.task t WHERE t.row > $1 AND t.row <= $2
         AND NOT EXISTS (SELECT 1 FROM pensum.class c WHERE c.id = t.class)",
        "the class of task {} does not exist",
    ),
    (
        "SELECT l.row FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         WHERE l.row > $1 AND l.row <= $2 AND t.row > $1 AND t.row <= $2 AND l.class <> t.class",
        "task {} is in one class and counts in another",
    ),
    (
        "SELECT l.row FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         WHERE l.row > $1 AND l.row <= $2 AND t.row > $1 AND t.row <= $2
         AND (l.rank + (l.flags >> 25 & 7) <> -coalesce(t.priority, 2) OR l.rank < -5
           OR CASE WHEN t.deadline IS NOT NULL THEN l.deadline <> least(t.deadline, 9223370937343148030)
                   WHEN l.gate = 7 THEN l.deadline <> 9223370937343148031 + l.row
                   ELSE l.deadline < 9223370937343148031 + l.row END)",
        "task {} stands elsewhere in the order than it asks to",
    ),
    (
        "SELECT l.row FROM pensum.live l JOIN pensum.task t ON t.row = l.row JOIN pensum.class c ON c.id = t.class
         WHERE l.row > $1 AND l.row <= $2 AND t.row > $1 AND t.row <= $2
         AND l.scope IS DISTINCT FROM c.namespace || chr(31) || t.key",
        "task {} waits for the turn of another key than its own",
    ),
    (
        "SELECT l.row FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         WHERE l.row > $1 AND l.row <= $2 AND t.row > $1 AND t.row <= $2 AND l.parent IS DISTINCT FROM t.parent",
        "task {} would tell another parent of its end than its own",
    ),
    (
        "SELECT l.row FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         WHERE l.row > $1 AND l.row <= $2 AND t.row > $1 AND t.row <= $2
         AND (l.acceptor IS NOT NULL) <> coalesce(t.details::json ->> 'volatile' = 'true', false)",
        "task {} is durable and ends with a process, or the reverse",
    ),
    (
        "SELECT l.row FROM pensum.live l WHERE l.row > $1 AND l.row <= $2 AND l.unmet IS NOT NULL
         AND l.unmet <> (SELECT count(*) FROM pensum.dependency d JOIN pensum.live p ON p.row = d.prerequisite
                         WHERE d.dependent = l.row)",
        "task {} counts another number of unmet dependencies than it has",
    ),
    (
        "SELECT l.row FROM pensum.live l WHERE l.row > $1 AND l.row <= $2
         AND (l.unmet IS NOT NULL) <> (coalesce(l.waiting_for, 0) = 1)",
        "task {} waits for dependencies without having any, or the reverse",
    ),
    (
        "SELECT l.row FROM pensum.live l WHERE l.row > $1 AND l.row <= $2
         AND coalesce(l.children, 0) <> (SELECT count(*) FROM pensum.task t JOIN pensum.live c ON c.row = t.row
                                         WHERE t.parent = l.row AND c.parent = l.row)",
        "task {} counts another number of unfinished children than it has",
    ),
    (
        "SELECT p.row FROM pensum.live p WHERE p.row > $1 AND p.row <= $2 AND (p.flags & 1024) = 0
         AND EXISTS (SELECT 1 FROM pensum.dependency d JOIN pensum.live l ON l.row = d.dependent
                     WHERE d.prerequisite = p.row AND d.prerequisite > $1 AND d.prerequisite <= $2)",
        "task {} has dependants, and its end would not tell them",
    ),
    (
        "SELECT DISTINCT d.prerequisite FROM pensum.dependency d WHERE d.prerequisite > $1 AND d.prerequisite <= $2
         AND NOT EXISTS (SELECT 1 FROM pensum.task t WHERE t.row = d.prerequisite AND t.row > $1 AND t.row <= $2)",
        "a dependency names row {}, which does not exist",
    ),
    (
        "SELECT DISTINCT u.row FROM pensum.unique_key u WHERE u.row > $1 AND u.row <= $2
         AND NOT EXISTS (SELECT 1 FROM pensum.task t WHERE t.row = u.row AND t.row > $1 AND t.row <= $2)",
        "a unique key names row {}, which does not exist",
    ),
    (
        "SELECT u.row FROM pensum.unique_key u WHERE u.row > $1 AND u.row <= $2 AND u.expires_at IS NULL
         AND NOT EXISTS (SELECT 1 FROM pensum.live l WHERE l.row = u.row AND l.row > $1 AND l.row <= $2)",
        "task {} has ended and still holds its unique key",
    ),
];

/// Where tasks have left something, as their marks say: table, column, mark.
const MARKED: [(&str, &str, u32); 9] = [
    ("checkpoint", "row", mark::CHECKPOINT),
    ("inbox", "row", mark::INBOX),
    ("step", "row", mark::STEPS),
    ("unique_key", "row", mark::UNIQUE),
    ("dependency", "dependent", mark::DEPENDS),
    ("log", "row", mark::LOGS),
    ("event", "row", mark::EVENTS),
    ("execution", "row", mark::EXECUTIONS),
    ("tag", "row", mark::TAGS),
];

/// All checks of a window, with their sentences.
static WINDOW_CHECKS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let limited = |sql: &str| format!("{sql} LIMIT {VIOLATIONS_MAX}");
    let plain = CHECKS
        .iter()
        .map(|(sql, sentence)| (limited(sql), (*sentence).to_owned()));
    let marked = MARKED.iter().map(|(table, column, mark)| {
        let sql = format!(
            "SELECT DISTINCT e.{column} FROM pensum.{table} e
             LEFT JOIN pensum.live l ON l.row = e.{column} AND l.row > $1 AND l.row <= $2
             LEFT JOIN pensum.outcome o ON o.row = e.{column} AND o.row > $1 AND o.row <= $2
             WHERE e.{column} > $1 AND e.{column} <= $2 AND (coalesce(l.flags, o.flags, 0) & {mark}) = 0"
        );
        let sentence = format!("row {{}} has something in the table {table}, and no task knows of it");
        (limited(&sql), sentence)
    });
    plain.chain(marked).collect()
});

/// How many tasks of a window there are.
const TASKS: &str = "SELECT count(*) FROM pensum.task WHERE row > $1 AND row <= $2";
/// How finished tasks of a window count.
static ENDED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT t.class, o.state, count(*), count(*) FILTER (WHERE o.flags >> {} & 7 <> 0)
         FROM pensum.outcome o JOIN pensum.task t ON t.row = o.row
         WHERE o.row > $1 AND o.row <= $2 AND t.row > $1 AND t.row <= $2 GROUP BY t.class, o.state",
        flag::STATUS_SHIFT
    )
});
/// How many attempts of a window's tasks ended without ending them.
const EARLIER: &str = "SELECT count(*) FROM pensum.execution WHERE row > $1 AND row <= $2";

/// Checks the store.
pub(super) async fn verify(pool: &Arc<Pool>) -> Result<Verified, Fault> {
    let mut audit = Audit {
        tx: pool.snapshot().await?,
        verified: Verified::default(),
        cells: Cells::new(),
        attempts: 0,
    };
    // Statements this short do not pay for being compiled.
    audit.tx.query("SET LOCAL jit = off", &[]).await?;
    let mut after = i64::MIN;
    loop {
        let until = audit.window_end(after).await?;
        audit.check_window(after, until.unwrap_or(i64::MAX)).await?;
        audit.check_live(after, until.unwrap_or(i64::MAX)).await?;
        match until {
            Some(until) => after = until,
            None => break,
        }
    }
    audit.check_keys().await?;
    audit.check_sequence().await?;
    audit.check_queues().await?;
    audit.check_agents().await?;
    audit.check_breakers().await?;
    audit.check_counters().await?;
    audit.tx.commit(&[]).await?;
    Ok(audit.verified)
}

struct Audit {
    tx: Tx,
    verified: Verified,
    /// What the counters should say of tasks.
    cells: Cells,
    /// How many attempts have ended.
    attempts: i64,
}

impl Audit {
    fn say(&mut self, sentence: String) {
        if self.verified.violations.len() < VIOLATIONS_MAX {
            self.verified.violations.push(sentence);
        }
    }

    /// The last row of the window that begins after a row; `None` for one that reaches to the end.
    async fn window_end(&mut self, after: i64) -> Result<Option<i64>, Fault> {
        let sql = format!(
            "SELECT row FROM pensum.task WHERE row > $1 ORDER BY row OFFSET {} LIMIT 1",
            WINDOW - 1
        );
        let rows = self.tx.query(&sql, &[(&after, Type::INT8)]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
    }

    async fn check_window(&mut self, after: i64, until: i64) -> Result<(), Fault> {
        let figures = [TASKS, ENDED.as_str(), EARLIER];
        let queries = WINDOW_CHECKS.iter().map(|(sql, _)| sql.as_str()).chain(figures);
        let statements: Vec<Statement<'_>> = queries
            .map(|sql| Statement {
                sql,
                params: vec![Value::Int8(Some(after)), Value::Int8(Some(until))],
            })
            .collect();
        let mut answers = self.tx.pipeline(&statements).await?.into_iter();
        for (_, sentence) in WINDOW_CHECKS.iter() {
            for row in answers.next().unwrap_or_default() {
                let number: i64 = row.try_get(0)?;
                self.say(sentence.replace("{}", &number.to_string()));
            }
        }
        let number = |rows: Option<Vec<Row>>| -> Result<i64, Fault> {
            let rows = rows.unwrap_or_default();
            Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(0))
        };
        self.verified.tasks += number(answers.next())? as u64;
        for row in answers.next().unwrap_or_default() {
            let class = row.try_get::<_, i32>(0)? as u32;
            // Whatever is no end is told of already.
            if let Some(state) = State::from_code(i64::from(row.try_get::<_, i16>(1)?)) {
                *self.cells.entry((class, Cell::of_end(state))).or_default() += row.try_get::<_, i64>(2)?;
            }
            self.attempts += row.try_get::<_, i64>(3)?;
        }
        self.attempts += number(answers.next())?;
        Ok(())
    }

    /// Compares what the rows of unfinished tasks say for the claims and the reaper with what it follows from.
    async fn check_live(&mut self, after: i64, until: i64) -> Result<(), Fault> {
        let sql = format!(
            "SELECT {}, num_nonnulls(l.lease, l.node, l.executor, l.taken_at) FROM pensum.live l
             WHERE l.row > $1 AND l.row <= $2 ORDER BY l.row LIMIT {PAGE}",
            *LIVE_LIST
        );
        let mut after = after;
        loop {
            let rows = self
                .tx
                .query(&sql, &[(&after, Type::INT8), (&until, Type::INT8)])
                .await?;
            for row in &rows {
                after = row.try_get(0)?;
                match LiveRow::read(row, 0) {
                    Ok(live) => {
                        *self.cells.entry((live.class, live.cell(live.gate))).or_default() += 1;
                        for sentence in violations(&live, row)? {
                            self.say(sentence);
                        }
                    }
                    Err(Fault::Damaged(what)) => self.say(what),
                    Err(fault) => return Err(fault),
                }
            }
            if (rows.len() as i64) < PAGE {
                return Ok(());
            }
        }
    }

    /// Of each key no more tasks are claimable or run than their queues let, and one does as long as others could. Where the
    /// last turn was given before a queue was changed, or soon after, it may have been wider then.
    async fn check_keys(&mut self) -> Result<(), Fault> {
        // Tasks that are overdue get no turn any more.
        let sql = format!(
            "SELECT max(k.scope), array_agg(k.scope) FILTER (WHERE k.held > turns.width
                        AND (turns.changed_at IS NULL OR turns.given_at > turns.changed_at + {SETTLED_MICROS})),
                    array_agg(k.scope) FILTER (WHERE k.held = 0 AND k.behind > 0), count(*)
             FROM (SELECT l.scope, count(*) FILTER (WHERE l.gate IN ({ready}, {running})) AS held,
                          count(*) FILTER (WHERE l.gate = {key} AND l.timer_at IS NULL) AS behind
                   FROM pensum.live l WHERE l.scope > $1 GROUP BY l.scope ORDER BY l.scope LIMIT {KEYS}) k
             LEFT JOIN LATERAL (
                SELECT min(coalesce(q.per_key, 1)) AS width, max(q.changed_at) AS changed_at,
                       max(CASE l.gate WHEN {ready} THEN l.due_at ELSE l.taken_at END) AS given_at
                FROM pensum.live l JOIN pensum.class c ON c.id = l.class
                LEFT JOIN pensum.queue q ON q.namespace = c.namespace AND q.name = c.queue
                WHERE k.held > 1 AND l.scope = k.scope AND l.gate IN ({ready}, {running})) turns ON true",
            ready = gate::READY,
            running = gate::RUNNING,
            key = gate::KEY,
        );
        let mut after = String::new();
        loop {
            let rows = self.tx.query(&sql, &[(&after, Type::TEXT)]).await?;
            let Some(row) = rows.first() else { return Ok(()) };
            for (column, what) in [
                (1, "more tasks have their turn than may"),
                (2, "tasks wait, and none has its turn"),
            ] {
                let scopes: Option<Vec<String>> = row.try_get(column)?;
                for scope in scopes.unwrap_or_default() {
                    let (namespace, key) = scope.split_once('\u{1f}').unwrap_or(("", &scope));
                    self.say(format!("of the key {key} in the namespace {namespace} {what}"));
                }
            }
            match row.try_get::<_, Option<String>>(0)? {
                Some(last) if row.try_get::<_, i64>(3)? == KEYS => after = last,
                _ => return Ok(()),
            }
        }
    }

    /// The next task must get a row of its own.
    async fn check_sequence(&mut self) -> Result<(), Fault> {
        let sql = "SELECT s.last_value, s.is_called, (SELECT max(row) FROM pensum.task) FROM pensum.task_row s";
        for row in self.tx.query(sql, &[]).await? {
            let (last, is_used): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
            let next = last + i64::from(is_used);
            if let Some(largest) = row.try_get::<_, Option<i64>>(2)?.filter(|largest| *largest >= next) {
                self.say(format!(
                    "the next row would be {next}, and there is a row {largest} already"
                ));
            }
        }
        Ok(())
    }

    /// Claims can read every queue, and see when one changes. Whether a limit was kept cannot be told afterwards: it may
    /// have been another one then.
    async fn check_queues(&mut self) -> Result<(), Fault> {
        let rows = self.tx.query("SELECT count(*) FROM pensum.queue_version", &[]).await?;
        let versions = rows.first().map_or(Ok(0), |row| row.try_get::<_, i64>(0))?;
        if versions != 1 {
            self.say(format!("the queues have {versions} versions at once"));
        }
        let sql = format!("SELECT {} FROM pensum.queue q ORDER BY q.id", queue::COLUMNS);
        for row in self.tx.query(&sql, &[]).await? {
            let (namespace, name): (&str, &str) = (row.try_get("namespace")?, row.try_get("name")?);
            if namespace.is_empty() || name.is_empty() || name.chars().any(char::is_control) {
                self.say(format!("a queue of the namespace {namespace:?} is named {name:?}"));
            }
            match queue::read(&row, 0) {
                Ok((_, _, queue)) if queue.settings.auto_start && queue.process_to.is_some() => {
                    self.say(format!("queue {name} starts by itself, and only up to a certain task"));
                }
                Ok(_) => {}
                Err(Fault::Damaged(what)) => self.say(what),
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Every agent can be read, and one session of each holds: what sessions have leased is that of a present one.
    async fn check_agents(&mut self) -> Result<(), Fault> {
        let sql = format!(
            "SELECT {} FROM pensum.agent a ORDER BY a.namespace, a.name",
            agent::COLUMNS
        );
        let mut sessions = BTreeSet::new();
        for row in self.tx.query(&sql, &[]).await? {
            let (namespace, name): (&str, &str) = (row.try_get("namespace")?, row.try_get("name")?);
            if namespace.is_empty() || name.is_empty() || name.chars().any(char::is_control) {
                self.say(format!("an agent of the namespace {namespace:?} is named {name:?}"));
            }
            let agent = match agent::read(&row) {
                Ok((_, agent)) => agent,
                Err(Fault::Damaged(what)) => {
                    self.say(what);
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            if agent.fenced.len() > SESSIONS_FENCED_MAX {
                let fenced = agent.fenced.len();
                self.say(format!("agent {name} remembers {fenced} sessions that were fenced"));
            }
            if let Some(session) = agent.session
                && (agent.fenced.contains(&session) || !sessions.insert(session))
            {
                self.say(format!("the session of agent {name} is fenced, or that of another one"));
            }
        }
        let sql = format!(
            "SELECT l.row FROM pensum.live l JOIN pensum.class c ON c.id = l.class LEFT JOIN pensum.agent a
             ON a.session = l.node AND a.namespace = c.namespace
             WHERE (l.flags & {}) <> 0 AND a.session IS NULL ORDER BY l.row LIMIT {VIOLATIONS_MAX}",
            flag::AGENT
        );
        for row in self.tx.query(&sql, &[]).await? {
            let number: i64 = row.try_get(0)?;
            self.say(format!(
                "task {number} is leased by a session that no agent of its namespace has"
            ));
        }
        Ok(())
    }

    /// Every breaker can be read, and remembers only what belongs to how it is.
    async fn check_breakers(&mut self) -> Result<(), Fault> {
        for row in self.tx.query(&breaker::ALL, &[]).await? {
            let (namespace, name): (&str, &str) = (row.try_get("namespace")?, row.try_get("name")?);
            if namespace.is_empty() || name.is_empty() || name.chars().any(char::is_control) {
                self.say(format!("a breaker of the namespace {namespace:?} is named {name:?}"));
            }
            let memory = match breaker::read(&row) {
                Ok((_, record)) => record.memory,
                Err(Fault::Damaged(what)) => {
                    self.say(what);
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            if memory.opened_at.is_some() && !memory.slices.is_empty() {
                self.say(format!("breaker {name} is not closed, and counts what ends"));
            }
            if memory.opened_at.is_none() && memory.succeeded > 0 {
                self.say(format!("breaker {name} is closed, and counts probes"));
            }
        }
        Ok(())
    }

    /// Compares the counters with the count of the rows.
    async fn check_counters(&mut self) -> Result<(), Fault> {
        let mut counted = counters(&mut self.tx).await?;
        // A task takes its attempts along when it is moved to another class, but not their counts.
        let attempts: i64 = counted
            .iter()
            .filter(|((_, cell), _)| *cell == Cell::Executions)
            .map(|(_, n)| n)
            .sum();
        counted.retain(|(_, cell), _| *cell != Cell::Executions);
        if attempts != self.attempts {
            let has = self.attempts;
            self.say(format!("{attempts} ended attempts are counted, and there are {has}"));
        }
        let cells: BTreeSet<(u32, Cell)> = counted.keys().chain(self.cells.keys()).copied().collect();
        for (class, cell) in cells {
            let of = |cells: &Cells| cells.get(&(class, cell)).copied().unwrap_or(0);
            let (says, has) = (of(&counted), of(&self.cells));
            if says != has {
                self.say(format!("class {class} counts {says} tasks as {cell:?} and has {has}"));
            }
        }
        Ok(())
    }
}

/// What is wrong with a row of an unfinished task, from [`Audit::check_live`], by itself.
fn violations(live: &LiveRow, row: &Row) -> Result<Vec<String>, Fault> {
    let number = live.row;
    let column = |name: &str| LIVE.iter().position(|(column, _)| *column == name).unwrap_or(0);
    let time = |name: &str| -> Result<Option<Time>, Fault> {
        Ok(row.try_get::<_, Option<i64>>(column(name))?.map(Time::from_micros))
    };
    let mut sentences = Vec::new();
    let running = live.life.state == State::Running;
    let leased: i32 = row.try_get(LIVE.len())?;
    if leased != if running { 4 } else { 0 } {
        sentences.push(format!(
            "task {number} is {} with {leased} of the 4 columns of a lease",
            live.life.state
        ));
    }
    let flags = row.try_get::<_, i32>(column("flags"))? as u32;
    if flags != live.flags() {
        sentences.push(format!(
            "task {number} has the flags {flags:#x} where its columns make {:#x}",
            live.flags()
        ));
    }
    // Gates open by the clock without a write, so a row may stand at either gate.
    let (early, late) = (live.gate_at(Time::from_micros(i64::MIN)), live.gate_at(Time::MAX));
    let in_turn = late == gate::KEY && live.gate == gate::READY;
    if live.gate != early && live.gate != late && !in_turn {
        sentences.push(format!("task {number} stands at gate {} instead of {late}", live.gate));
        return Ok(sentences);
    }
    let at = if live.gate == early {
        Time::from_micros(i64::MIN)
    } else {
        Time::MAX
    };
    for (name, found, expected) in [
        // Whose turn it is remembers since when.
        ("due_at", time("due_at")?.filter(|_| !in_turn), live.due_at(at)),
        ("timer_at", time("timer_at")?, live.timer_at()),
    ] {
        if found != expected {
            sentences.push(format!(
                "task {number} has {name} {found:?} where its columns make {expected:?}"
            ));
        }
    }
    Ok(sentences)
}
