//! Lists: newest first, from the best index for the filter, with a bound on the rows that a page looks at.
//!
//! A page is read at one moment, in two steps: which rows match, from the columns that the filter names; then all of
//! those rows alone.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use pensum_core::query::Paged;
use pensum_core::task::{Details, Execution};
use pensum_core::{Name, Page, Priority, State, Status, TaskFilter, TaskRecord, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::error::Fault;
use super::names::{Catalog, Class};
use super::pool::{Param, Pool, Statement, Tx, Value, text};
use super::reads::{EXECUTION, FOUND, Found, last_execution, read_execution};
use super::row::{LIVE_LIST, LiveRow, OUTCOME, OUTCOME_LIST, OutcomeRow, damaged, flag, gate, task_id};

/// How many rows a page passes over by their class alone: some 20 ms.
const PASSED_MAX: i64 = 20_000;
/// How many rows a page asks its filter about.
const READ_MAX: usize = 1_000;
/// How many rows are asked for at once.
const CHUNK: usize = 512;

/// Where rows that may match come from: every matching task is in one of a filter's sources.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    /// A query for `row`, `class` and whether the row is `good`, of rows before `$1`, newest first. It may name `$8`.
    Walk(String),
    /// Unfinished rows of one gate; with true, only those that have come due. No index has them in order, for each claim
    /// would pay for it, so they are taken together as long as they are few.
    Gate(i16, bool),
}

fn by_column(column: &str) -> Source {
    Source::Walk(format!(
        "SELECT t.row, t.class, true AS good FROM pensum.task t WHERE t.{column} = $8 AND t.row < $1 ORDER BY t.row DESC"
    ))
}

fn everything() -> Source {
    Source::Walk(
        "SELECT t.row, t.class, true AS good FROM pensum.task t WHERE t.row < $1 ORDER BY t.row DESC".to_owned(),
    )
}

fn ended(state: State) -> Source {
    let code = state.code();
    // The index leaves completed tasks out, so that most finishes do not touch it.
    let (condition, good) = if state == State::Completed {
        (String::new(), format!("o.state = {code}"))
    } else {
        (
            format!("o.state = {code} AND o.state <> {} AND", State::Completed.code()),
            "true".to_owned(),
        )
    };
    Source::Walk(format!(
        "SELECT o.row, (SELECT t.class FROM pensum.task t WHERE t.row = o.row) AS class, {good} AS good
         FROM pensum.outcome o WHERE {condition} o.row < $1 ORDER BY o.row DESC"
    ))
}

/// The filter's sources, and what they know as `$8`.
fn sources(filter: &TaskFilter) -> (Vec<Source>, Value<'_>) {
    fn needle(name: &str) -> Value<'_> {
        Value::Text(Some(text(name)))
    }
    if let Some(key) = &filter.key {
        return (vec![by_column("key")], needle(key));
    }
    if let Some(parent) = filter.parent_id {
        return (vec![by_column("parent")], Value::Int8(Some(parent.row())));
    }
    if let Some(workflow) = filter.workflow_id {
        return (vec![by_column("workflow")], Value::Int8(Some(workflow.row())));
    }
    if let Some(name) = &filter.created_by {
        return (vec![by_column("created_by")], needle(name));
    }
    if let Some(name) = &filter.assigned_to {
        return (vec![by_column("assigned_to")], needle(name));
    }
    if let Some(tag) = &filter.tag {
        let tagged = "SELECT g.row, (SELECT t.class FROM pensum.task t WHERE t.row = g.row) AS class, true AS good
                      FROM pensum.tag g WHERE g.tag = $8 AND g.row < $1 ORDER BY g.row DESC";
        return (vec![Source::Walk(tagged.to_owned())], needle(tag));
    }
    let mut sources = Vec::new();
    if filter.dead_lettered == Some(true) {
        sources.push(ended(State::Failed));
    } else {
        for status in &filter.status {
            for source in of_status(*status) {
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
    }
    if sources.is_empty() {
        sources.push(everything());
    }
    (sources, Value::Int8(None))
}

/// Unfinished rows of a gate that the index has in order.
fn held(gate: i16) -> Source {
    Source::Walk(format!(
        "SELECT l.row, l.class, true AS good FROM pensum.live l WHERE l.gate = {gate} AND l.row < $1 ORDER BY l.row DESC"
    ))
}

fn of_status(status: Status) -> Vec<Source> {
    let gate = |gate| Source::Gate(gate, false);
    match status {
        Status::Completed => vec![ended(State::Completed)],
        Status::Failed => vec![ended(State::Failed)],
        Status::Cancelled => vec![ended(State::Cancelled)],
        Status::Running => vec![gate(gate::RUNNING), held(gate::WAITING)],
        Status::Paused => vec![gate(gate::RUNNING), held(gate::PAUSED)],
        Status::Retrying => vec![held(gate::RETRYING)],
        Status::Pending => vec![held(gate::LATER), held(gate::DEPENDENCIES)],
        Status::Ready => vec![
            gate(gate::READY),
            gate(gate::KEY),
            Source::Gate(gate::LATER, true),
            Source::Gate(gate::RETRYING, true),
        ],
    }
}

/// The classes that a page is about: the namespace is `$3`, the queue `$4` and the handler `$5`, NULL for any.
const CLASSES: &str = "ARRAY(SELECT c.id FROM pensum.class c WHERE c.namespace = $3
                       AND ($4 IS NULL OR c.queue = $4) AND ($5 IS NULL OR c.handler = $5))";

impl Source {
    /// A part of the list's query: rows with the number of the source, whether they fit, and whether the source has come
    /// to its bound with this one; at most `$2` of them. A gate that is not so few after all answers NULL for a row.
    fn select(&self, number: usize) -> String {
        match self {
            // The rows come in order from an index, one by one, as far as they are needed.
            Source::Walk(walk) => format!(
                "(SELECT {number} AS source, x.row, x.fits, x.n = {PASSED_MAX} AS bounded FROM (
                   SELECT w.row, w.good AND w.class = ANY({CLASSES}) AS fits,
                          row_number() OVER (ORDER BY w.row DESC) AS n FROM ({walk} LIMIT {PASSED_MAX}) w) x
                  WHERE x.fits OR x.n = {PASSED_MAX} ORDER BY x.row DESC LIMIT $2)"
            ),
            Source::Gate(..) => format!(
                "(SELECT {number}, f.row, true, false FROM few_{number} f WHERE f.row < $1 AND f.class = ANY({CLASSES})
                  ORDER BY f.row DESC LIMIT $2)
                 UNION ALL
                 SELECT {number}, NULL, false, true WHERE (SELECT count(*) FROM few_{number}) > {PASSED_MAX}"
            ),
        }
    }

    /// What [`Source::select`] of a gate takes its rows from.
    fn few(&self, number: usize) -> Option<String> {
        let Source::Gate(gate, due) = self else { return None };
        let due = if *due { "AND l.due_at <= $6" } else { "" };
        Some(format!(
            "few_{number} AS MATERIALIZED (
               SELECT l.row, l.class FROM pensum.live l WHERE l.gate = {gate} {due} LIMIT {PASSED_MAX} + 1)"
        ))
    }

    /// What to do about a gate that has many rows: with so many of them, a walk over all rows comes upon some soon.
    fn walk(&mut self) {
        if let Source::Gate(gate, due) = self {
            let due = if *due { "AND l.due_at <= $6" } else { "" };
            *self = Source::Walk(format!(
                "SELECT l.row, l.class, l.gate = {gate} {due} AS good FROM pensum.live l WHERE l.row < $1
                 ORDER BY l.row DESC"
            ));
        }
    }
}

/// A list under way.
struct List<'a> {
    tx: Tx,
    sources: Vec<Source>,
    /// What the filter asks of a row beside its class: columns, and the tables to join to `f.row`.
    columns: String,
    joins: &'static str,
    namespace: Cow<'a, str>,
    queue: Option<Cow<'a, str>>,
    handler: Option<Cow<'a, str>>,
    now: i64,
    wants_details: bool,
    needle: Value<'a>,
}

/// Some rows that may match, newest first.
struct Candidates {
    rows: Vec<(i64, Row)>,
    /// The last row looked at; `None` when there are no more.
    floor: Option<i64>,
    /// A source has come to its bound.
    bounded: bool,
}

/// How many columns stand before those of [`List::columns`].
const FIXED: usize = 4;

impl List<'_> {
    /// The next candidates before a row.
    async fn next(&mut self, before: i64, chunk: usize) -> Result<Candidates, Fault> {
        loop {
            let rows = self.ask(before, chunk).await?;
            let mut many = false;
            for row in &rows {
                if row.try_get::<_, Option<i64>>(1)?.is_none() {
                    let source = row.try_get::<_, i32>(0)? as usize;
                    many |= self.sources.get_mut(source).map(Source::walk).is_some();
                }
            }
            if !many {
                return self.merge(rows, chunk);
            }
        }
    }

    async fn ask(&mut self, before: i64, chunk: usize) -> Result<Vec<Row>, Fault> {
        let few: Vec<String> = self.sources.iter().enumerate().filter_map(|(n, s)| s.few(n)).collect();
        let parts: Vec<String> = self.sources.iter().enumerate().map(|(n, s)| s.select(n)).collect();
        let sql = format!(
            "WITH {}{} found(source, row, fits, bounded) AS MATERIALIZED ({})
             SELECT f.source, f.row, f.fits, f.bounded{} FROM found f {} ORDER BY f.row DESC NULLS FIRST",
            few.join(", "),
            if few.is_empty() { "" } else { "," },
            parts.join(" UNION ALL "),
            self.columns,
            self.joins,
        );
        let chunk = i64::try_from(chunk).unwrap_or(i64::MAX);
        let params: [Param<'_>; 8] = [
            (&before, Type::INT8),
            (&chunk, Type::INT8),
            (&self.namespace, Type::TEXT),
            (&self.queue, Type::TEXT),
            (&self.handler, Type::TEXT),
            (&self.now, Type::INT8),
            (&self.wants_details, Type::BOOL),
            self.needle.as_param(),
        ];
        self.tx.query(&sql, &params).await
    }

    fn merge(&self, rows: Vec<Row>, chunk: usize) -> Result<Candidates, Fault> {
        let mut counts = vec![0; self.sources.len()];
        // Below the last row of a source that has more, others may be missing.
        let mut floor = None;
        let mut bounded = false;
        let mut fitting: Vec<(i64, Row)> = Vec::with_capacity(rows.len());
        for row in rows {
            let number: i64 = row.try_get(1)?;
            let count = &mut counts[row.try_get::<_, i32>(0)? as usize];
            *count += 1;
            let at_bound: bool = row.try_get(3)?;
            if at_bound || *count == chunk {
                floor = floor.max(Some(number));
                bounded |= at_bound;
            }
            let is_new = fitting.last().is_none_or(|(last, _)| *last != number);
            if is_new && row.try_get(2)? {
                fitting.push((number, row));
            }
        }
        fitting.retain(|(number, _)| floor.is_none_or(|floor| *number >= floor));
        Ok(Candidates {
            rows: fitting,
            floor,
            bounded,
        })
    }
}

/// True when there may be tasks of a class that fits.
async fn has_class(pool: &Arc<Pool>, catalog: &Catalog, fits: impl Fn(&Class) -> bool) -> Result<bool, Fault> {
    if catalog.classes().iter().any(|class| fits(class)) {
        return Ok(true);
    }
    catalog.refresh(pool).await?;
    Ok(catalog.classes().iter().any(|class| fits(class)))
}

/// One page of tasks.
pub(super) async fn tasks(
    pool: &Arc<Pool>,
    catalog: &Catalog,
    namespace: &str,
    filter: &TaskFilter,
    page: &Page,
    now: Time,
) -> Result<Paged<TaskRecord>, Fault> {
    let fits = |class: &Class| {
        *class.namespace == *namespace
            && filter.queue.as_ref().is_none_or(|queue| *queue == class.queue)
            && filter.handler.as_ref().is_none_or(|handler| *handler == class.handler)
    };
    let mut rows: Vec<i64> = Vec::new();
    let mut next = None;
    if !has_class(pool, catalog, fits).await? {
        return Ok(Paged {
            items: Vec::new(),
            next,
        });
    }
    let (sources, needle) = sources(filter);
    let mut list = List {
        tx: pool.snapshot().await?,
        sources,
        columns: format!(
            ", t.created_at, t.priority, t.key, CASE WHEN $7 THEN t.details END, c.handler, o.state, {}",
            *LIVE_LIST
        ),
        joins: "LEFT JOIN pensum.task t ON t.row = f.row AND f.fits LEFT JOIN pensum.class c ON c.id = t.class
                LEFT JOIN pensum.live l ON l.row = t.row LEFT JOIN pensum.outcome o ON o.row = t.row",
        namespace: text(namespace),
        queue: filter.queue.as_deref().map(text),
        handler: filter.handler.as_deref().map(text),
        now: now.as_micros(),
        wants_details: wants_details(filter),
        needle,
    };
    let (mut before, mut read) = (page.before_row.unwrap_or(i64::MAX), 0);
    let mut chunk = (page.limit + 1).min(CHUNK);
    'page: loop {
        let found = list.next(before, chunk).await?;
        for (row, columns) in &found.rows {
            read += 1;
            if matches(*row, columns, filter, now)? {
                if rows.len() == page.limit {
                    // One more than the page holds: there is a next one.
                    next = rows.last().copied();
                    break 'page;
                }
                rows.push(*row);
            }
        }
        let Some(floor) = found.floor else { break };
        if found.bounded || read >= READ_MAX {
            next = Some(floor);
            break;
        }
        before = floor;
        chunk = CHUNK;
    }
    let items = records(list.tx, pool, catalog, rows).await?;
    Ok(Paged { items, next })
}

/// The records of some rows, newest first.
async fn records(tx: Tx, pool: &Arc<Pool>, catalog: &Catalog, rows: Vec<i64>) -> Result<Vec<TaskRecord>, Fault> {
    if rows.is_empty() {
        tx.commit(&[]).await?;
        return Ok(Vec::new());
    }
    let sql = format!("{} WHERE t.row = ANY($1) ORDER BY t.row DESC", *FOUND);
    let params = vec![Value::Int8s(rows.into_iter().map(Some).collect())];
    let answers = tx.commit(&[Statement { sql: &sql, params }]).await?;
    let mut records = Vec::new();
    for row in answers.iter().flatten() {
        records.extend(Found::read(row, pool, catalog).await?.map(Found::record));
    }
    Ok(records)
}

/// True when the filter asks for something that only the details say.
fn wants_details(filter: &TaskFilter) -> bool {
    filter.task_type.is_some()
        || filter.assigned_to.is_some()
        || filter.agent_id.is_some()
        || filter.created_by.is_some()
        || filter.tag.is_some()
        || filter.workflow_id.is_some()
        || filter.parent_id.is_some()
        || filter.q.is_some()
}

/// Asks the filter about a row with the columns of [`tasks`].
fn matches(number: i64, row: &Row, filter: &TaskFilter, now: Time) -> Result<bool, Fault> {
    fn is<T: PartialEq + ?Sized>(wanted: Option<&T>, found: Option<&T>) -> bool {
        wanted.is_none() || wanted == found
    }
    let at = |column: usize| FIXED + column;
    let Some(created_at) = row.try_get::<_, Option<i64>>(at(0))?.map(Time::from_micros) else {
        return Ok(false);
    };
    let ended = row.try_get::<_, Option<i16>>(at(5))?;
    let (status, dead) = if row.try_get::<_, Option<i64>>(at(6))?.is_some() {
        (Status::of(&LiveRow::read(row, at(6))?.life, now), false)
    } else {
        match ended.and_then(|code| State::from_code(i64::from(code))) {
            Some(State::Completed) => (Status::Completed, false),
            Some(State::Failed) => (Status::Failed, true),
            Some(State::Cancelled) => (Status::Cancelled, false),
            _ if ended.is_some() => return Err(damaged(number, "state")),
            _ => return Ok(false),
        }
    };
    let level = row.try_get::<_, Option<i16>>(at(1))?;
    let priority = level.map_or(Some(Priority::Normal), |level| Priority::from_level(i64::from(level)));
    let key = row.try_get::<_, Option<&str>>(at(2))?.map(Name::from);
    let handler: &str = row.try_get(at(4))?;
    if !(filter.status.is_empty() || filter.status.contains(&status))
        || filter.dead_lettered.is_some_and(|wanted| wanted != dead)
        || !is(filter.priority.as_ref(), priority.as_ref())
        || !is(filter.key.as_ref(), key.as_ref())
        || filter.created_after.is_some_and(|at| created_at < at)
        || filter.created_before.is_some_and(|at| created_at >= at)
    {
        return Ok(false);
    }
    let details: Details = match row.try_get::<_, Option<&str>>(at(3))? {
        Some(json) => serde_json::from_str(json).map_err(|_| damaged(number, "JSON text as details"))?,
        None => Details::default(),
    };
    let task_type = details.task_type.as_deref().unwrap_or("custom");
    Ok(is(filter.task_type.as_deref(), Some(task_type))
        && is(filter.assigned_to.as_ref(), details.assigned_to.as_ref())
        && is(filter.agent_id.as_ref(), details.agent_id.as_ref())
        && is(filter.created_by.as_ref(), details.created_by.as_ref())
        && filter.tag.as_ref().is_none_or(|tag| details.tags.contains(tag))
        && is(filter.workflow_id.as_ref(), details.workflow_id.as_ref())
        && is(filter.parent_id.as_ref(), details.parent_id.as_ref())
        && filter.q.as_deref().is_none_or(|q| mentions(q, handler, &details)))
}

fn mentions(q: &str, handler: &str, details: &Details) -> bool {
    let q = q.to_lowercase();
    [Some(handler), details.name.as_deref(), details.description.as_deref()]
        .into_iter()
        .flatten()
        .any(|text| text.to_lowercase().contains(&q))
}

/// One page of ended attempts: those of the newest task first, and of one task the newest first.
pub(super) async fn executions(
    pool: &Arc<Pool>,
    catalog: &Catalog,
    namespace: &str,
    page: &Page,
) -> Result<Paged<Execution>, Fault> {
    let mut items: Vec<Execution> = Vec::new();
    if !has_class(pool, catalog, |class| *class.namespace == *namespace).await? {
        return Ok(Paged { items, next: None });
    }
    let walk = |table: &str, good: &str| {
        Source::Walk(format!(
            "SELECT e.row, (SELECT t.class FROM pensum.task t WHERE t.row = e.row) AS class, {good} AS good
             FROM pensum.{table} e WHERE e.row < $1 ORDER BY e.row DESC"
        ))
    };
    let mut list = List {
        tx: pool.snapshot().await?,
        sources: vec![
            walk("outcome", &format!("e.flags >> {} & 7 <> 0", flag::STATUS_SHIFT)),
            walk("execution", "true"),
        ],
        columns: String::new(),
        joins: "",
        namespace: text(namespace),
        queue: None,
        handler: None,
        now: 0,
        wants_details: false,
        needle: Value::Int8(None),
    };
    let (mut before, mut read, mut last) = (page.before_row.unwrap_or(i64::MAX), 0, None);
    let next = 'page: loop {
        // Each row has an attempt at least.
        let found = list.next(before, (page.limit + 1).min(CHUNK)).await?;
        let rows: Vec<i64> = found.rows.iter().map(|(row, _)| *row).collect();
        let mut attempts = attempts_of(&mut list.tx, &rows).await?;
        for row in rows {
            read += 1;
            let Some(attempts) = attempts.remove(&row) else {
                continue;
            };
            if items.len() >= page.limit {
                break 'page last;
            }
            items.extend(attempts);
            last = Some(row);
        }
        let Some(floor) = found.floor else { break None };
        if found.bounded || read >= READ_MAX {
            break Some(floor);
        }
        before = floor;
    };
    list.tx.commit(&[]).await?;
    Ok(Paged { items, next })
}

/// The ended attempts of some rows, of each the newest first.
async fn attempts_of(tx: &mut Tx, rows: &[i64]) -> Result<HashMap<i64, Vec<Execution>>, Fault> {
    let mut attempts: HashMap<i64, Vec<Execution>> = HashMap::new();
    if rows.is_empty() {
        return Ok(attempts);
    }
    let ended = format!(
        "SELECT {}, t.id, n.text FROM pensum.outcome o JOIN pensum.task t ON t.row = o.row
         LEFT JOIN pensum.name n ON n.id = o.executor WHERE o.row = ANY($1)",
        *OUTCOME_LIST
    );
    let earlier = format!(
        "SELECT t.id, {EXECUTION} FROM pensum.execution e JOIN pensum.task t ON t.row = e.row WHERE e.row = ANY($1)
         ORDER BY e.row, e.attempt DESC"
    );
    let params = || vec![Value::Int8s(rows.iter().copied().map(Some).collect())];
    let statements = [&ended, &earlier].map(|sql| Statement { sql, params: params() });
    let mut answers = tx.pipeline(&statements).await?.into_iter();
    for row in answers.next().unwrap_or_default() {
        let outcome = OutcomeRow::read(&row, 0)?;
        let id = task_id(&row, OUTCOME.len())?;
        let executor: Option<String> = row.try_get(OUTCOME.len() + 1)?;
        if let Some(last) = last_execution(&outcome, id, executor.unwrap_or_default()) {
            attempts.entry(outcome.row).or_default().push(last);
        }
    }
    for row in answers.next().unwrap_or_default() {
        let id = task_id(&row, 0)?;
        attempts.entry(id.row()).or_default().push(read_execution(&row, 1, id)?);
    }
    Ok(attempts)
}
