//! Lists: newest first, from the best index for the filter, with a bound on the rows that a page looks at.

use std::collections::HashMap;
use std::collections::HashSet;

use foldhash::fast::FixedState;
use pensum_core::query::Paged;
use pensum_core::task::{Details, Execution};
use pensum_core::{Page, State, Status, TaskFilter, TaskRecord, Time};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::error::Fault;
use super::names::Catalog;
use super::reads::{Whereabouts, earlier_executions, last_execution, record, stored_task, whereabouts};
use super::row::{OutcomeRow, gate};
use super::view::Seen;

/// How many rows a page passes over by their class alone: some 5 ms.
const PASSED_MAX: usize = 20_000;
/// How many rows a page reads in full: some 10 ms.
const READ_MAX: usize = 1_000;
/// How many rows are fetched from a source at once.
const CHUNK: usize = 512;

/// Leases as of before the disk was read.
pub(super) type Overlay = HashMap<i64, Seen, FixedState>;

/// A sorted source of candidate rows: every matching task is in one of a filter's sources.
enum Source {
    /// A query that takes the row to go on before, a limit, and further parameters.
    Query(String, Vec<Value>),
    /// Rows, descending.
    Rows(Vec<i64>),
}

fn by_column(column: &str, value: impl Into<Value>) -> Source {
    let sql = format!("SELECT row, class FROM task WHERE {column} = ?3 AND row < ?1 ORDER BY row DESC LIMIT ?2");
    Source::Query(sql, vec![value.into()])
}

fn live_gate(gate: i64) -> Source {
    let sql = "SELECT row, class FROM live WHERE gate = ?3 AND row < ?1 ORDER BY row DESC LIMIT ?2";
    Source::Query(sql.to_owned(), vec![gate.into()])
}

fn ended(state: State) -> Source {
    // The index leaves completed tasks out, so that most finishes do not touch it.
    let index = if state == State::Completed {
        ""
    } else {
        "AND state <> 3"
    };
    let sql = format!(
        "SELECT row, (SELECT class FROM task WHERE task.row = outcome.row) FROM outcome
         WHERE state = {} {index} AND row < ?1 ORDER BY row DESC LIMIT ?2",
        state.code()
    );
    Source::Query(sql, Vec::new())
}

fn leased(overlay: &Overlay) -> Source {
    let mut rows: Vec<i64> = overlay.keys().copied().collect();
    rows.sort_unstable_by(|a, b| b.cmp(a));
    Source::Rows(rows)
}

fn sources(filter: &TaskFilter, overlay: &Overlay) -> Vec<Source> {
    if let Some(key) = &filter.key {
        return vec![by_column("key", key.to_string())];
    }
    if let Some(parent) = filter.parent_id {
        return vec![by_column("parent", parent.row())];
    }
    if let Some(workflow) = filter.workflow_id {
        return vec![by_column("workflow", workflow.row())];
    }
    if let Some(name) = &filter.created_by {
        return vec![by_column("created_by", name.clone())];
    }
    if let Some(name) = &filter.assigned_to {
        return vec![by_column("assigned_to", name.clone())];
    }
    if let Some(tag) = &filter.tag {
        let sql = "SELECT row, (SELECT class FROM task WHERE task.row = tag.row) FROM tag
                   WHERE tag = ?3 AND row < ?1 ORDER BY row DESC LIMIT ?2";
        return vec![Source::Query(sql.to_owned(), vec![tag.clone().into()])];
    }
    if filter.dead_lettered == Some(true) {
        return vec![ended(State::Failed)];
    }
    let mut sources = Vec::new();
    for status in &filter.status {
        match status {
            Status::Completed => sources.push(ended(State::Completed)),
            Status::Failed => sources.push(ended(State::Failed)),
            Status::Cancelled => sources.push(ended(State::Cancelled)),
            Status::Running => sources.extend([leased(overlay), live_gate(gate::WAITING)]),
            Status::Paused => sources.extend([leased(overlay), live_gate(gate::PAUSED)]),
            Status::Retrying => sources.push(live_gate(gate::RETRYING)),
            Status::Pending => sources.extend([live_gate(gate::LATER), live_gate(gate::DEPENDENCIES)]),
            Status::Ready => {
                let sql = "SELECT row, class FROM live WHERE row < ?1 ORDER BY row DESC LIMIT ?2";
                sources.push(Source::Query(sql.to_owned(), Vec::new()));
            }
        }
    }
    if sources.is_empty() {
        let sql = "SELECT row, class FROM task WHERE row < ?1 ORDER BY row DESC LIMIT ?2";
        sources.push(Source::Query(sql.to_owned(), Vec::new()));
    }
    sources
}

/// A row, and its class where the source knows it.
type Candidate = (i64, Option<u32>);

/// The next candidates of all sources before a row, descending; and whether there are more.
fn candidates(db: &Connection, sources: &[Source], before: i64, chunk: usize) -> Result<(Vec<Candidate>, bool), Fault> {
    let mut found: Vec<Candidate> = Vec::new();
    // Below the last row of a source that has more, others may be missing.
    let mut floor = i64::MIN;
    for source in sources {
        let start = found.len();
        match source {
            Source::Query(sql, values) => {
                let mut statement = db.prepare_cached(sql)?;
                let fixed = [Value::from(before), Value::from(chunk as i64)];
                let mut rows = statement.query(params_from_iter(fixed.iter().chain(values)))?;
                while let Some(row) = rows.next()? {
                    found.push((row.get(0)?, row.get(1)?));
                }
            }
            Source::Rows(rows) => {
                let from = rows.partition_point(|row| *row >= before);
                found.extend(rows[from..].iter().take(chunk).map(|row| (*row, None)));
            }
        }
        if found.len() - start == chunk
            && let Some((last, _)) = found.last()
        {
            floor = floor.max(*last);
        }
    }
    found.retain(|(row, _)| *row >= floor);
    found.sort_unstable_by_key(|(row, _)| std::cmp::Reverse(*row));
    found.dedup_by_key(|(row, _)| *row);
    Ok((found, floor > i64::MIN))
}

/// One page of tasks.
pub(super) fn tasks(
    db: &Connection,
    catalog: &Catalog,
    overlay: &Overlay,
    namespace: &str,
    filter: &TaskFilter,
    page: &Page,
    now: Time,
) -> Result<Paged<TaskRecord>, Fault> {
    let fits = |class: &super::names::Class| {
        *class.namespace == *namespace
            && filter.queue.as_ref().is_none_or(|queue| *queue == class.queue)
            && filter.handler.as_ref().is_none_or(|handler| *handler == class.handler)
    };
    let classes: HashSet<u32, FixedState> = catalog
        .classes()
        .iter()
        .enumerate()
        .filter(|(_, c)| fits(c))
        .map(|(id, _)| id as u32)
        .collect();
    let mut items: Vec<TaskRecord> = Vec::new();
    if classes.is_empty() {
        return Ok(Paged { items, next: None });
    }
    let sources = sources(filter, overlay);
    let (mut before, mut passed, mut read) = (page.before_row.unwrap_or(i64::MAX), 0, 0);
    let mut chunk = (page.limit + 1).min(CHUNK);
    loop {
        let (found, more) = candidates(db, &sources, before, chunk)?;
        for (row, class) in found {
            if class.is_some_and(|class| !classes.contains(&class)) {
                (before, passed) = (row, passed + 1);
                continue;
            }
            read += 1;
            if let Some(record) = matching(db, catalog, overlay, row, &classes, filter, now)? {
                if items.len() == page.limit {
                    // One more than the page holds: there is a next one.
                    return Ok(Paged {
                        next: items.last().map(|r| r.id.row()),
                        items,
                    });
                }
                items.push(record);
            }
            before = row;
        }
        if !more {
            return Ok(Paged { items, next: None });
        }
        if passed >= PASSED_MAX || read >= READ_MAX {
            return Ok(Paged {
                items,
                next: Some(before),
            });
        }
        chunk = CHUNK;
    }
}

fn matching(
    db: &Connection,
    catalog: &Catalog,
    overlay: &Overlay,
    row: i64,
    classes: &HashSet<u32, FixedState>,
    filter: &TaskFilter,
    now: Time,
) -> Result<Option<TaskRecord>, Fault> {
    let Some(place) = whereabouts(db, row, overlay.get(&row).cloned())? else {
        return Ok(None);
    };
    let life = match &place {
        Whereabouts::Unfinished(live, _) => &live.life,
        Whereabouts::Finished(outcome) => &outcome.life,
    };
    // The cheap questions first: most rows that do not match fail here.
    if !filter.status.is_empty() && !filter.status.contains(&Status::of(life, now))
        || filter
            .dead_lettered
            .is_some_and(|dead| life.dead_lettered_at.is_some() != dead)
    {
        return Ok(None);
    }
    let Some(task) = stored_task(db, catalog, row)?.filter(|task| classes.contains(&task.class)) else {
        return Ok(None);
    };
    let plain = Details::default();
    if !asked_for(
        &task.spec,
        task.spec.details.as_deref().unwrap_or(&plain),
        task.created_at,
        filter,
    ) {
        return Ok(None);
    }
    record(db, task, place).map(Some)
}

fn asked_for(spec: &pensum_core::Spec, details: &Details, created_at: Time, filter: &TaskFilter) -> bool {
    fn is<T: PartialEq + ?Sized>(wanted: Option<&T>, found: Option<&T>) -> bool {
        wanted.is_none() || wanted == found
    }
    is(
        filter.task_type.as_deref(),
        Some(details.task_type.as_deref().unwrap_or("custom")),
    ) && is(filter.priority.as_ref(), Some(&spec.priority))
        && is(filter.assigned_to.as_ref(), details.assigned_to.as_ref())
        && is(filter.agent_id.as_ref(), details.agent_id.as_ref())
        && is(filter.created_by.as_ref(), details.created_by.as_ref())
        && is(filter.key.as_ref(), spec.key.as_ref())
        && filter.tag.as_ref().is_none_or(|tag| details.tags.contains(tag))
        && is(filter.workflow_id.as_ref(), details.workflow_id.as_ref())
        && is(filter.parent_id.as_ref(), details.parent_id.as_ref())
        && filter.created_after.is_none_or(|at| created_at >= at)
        && filter.created_before.is_none_or(|at| created_at < at)
        && filter.q.as_deref().is_none_or(|q| mentions(q, &spec.handler, details))
}

fn mentions(q: &str, handler: &str, details: &Details) -> bool {
    let q = q.to_lowercase();
    [Some(handler), details.name.as_deref(), details.description.as_deref()]
        .into_iter()
        .flatten()
        .any(|text| text.to_lowercase().contains(&q))
}

/// One page of ended attempts: those of the newest task first, and of one task the newest first.
pub(super) fn executions(
    db: &Connection,
    catalog: &Catalog,
    namespace: &str,
    page: &Page,
) -> Result<Paged<Execution>, Fault> {
    let ended = "SELECT row, NULL FROM outcome WHERE row < ?1 ORDER BY row DESC LIMIT ?2";
    let earlier = "SELECT DISTINCT row, NULL FROM execution WHERE row < ?1 ORDER BY row DESC LIMIT ?2";
    let sources = [ended, earlier].map(|sql| Source::Query(sql.to_owned(), Vec::new()));
    let mut items: Vec<Execution> = Vec::new();
    let (mut before, mut read, mut last) = (page.before_row.unwrap_or(i64::MAX), 0, None);
    loop {
        let (found, more) = candidates(db, &sources, before, (page.limit + 1).min(CHUNK))?;
        for (row, _) in found {
            (before, read) = (row, read + 1);
            let Some(task) = stored_task(db, catalog, row)? else {
                continue;
            };
            if catalog
                .class(task.class)
                .is_none_or(|class| *class.namespace != *namespace)
            {
                continue;
            }
            let mut executions = earlier_executions(db, task.id)?;
            if let Some(outcome) = OutcomeRow::load(db, row)? {
                executions.extend(last_execution(catalog, &outcome, task.id));
            }
            if executions.is_empty() {
                continue;
            }
            if items.len() >= page.limit {
                return Ok(Paged { items, next: last });
            }
            items.extend(executions.into_iter().rev());
            last = Some(row);
        }
        if !more {
            return Ok(Paged { items, next: None });
        }
        if read >= READ_MAX {
            return Ok(Paged {
                items,
                next: Some(before),
            });
        }
    }
}
