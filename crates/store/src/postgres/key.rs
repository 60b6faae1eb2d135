//! Whose turn it is among the tasks of one key.
//!
//! Of each key at most one row is claimable or runs, or as many as its queues let (see `width.rs`); the others stand behind
//! with a gate of their own, so that a million of them cost a claim nothing. Whoever changes a row of a key settles its turn
//! in the same transaction, under a lock for that key.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::iter;

use pensum_core::{Name, Time};

use super::pool::{Statement, Value};
use super::width;

/// How keys stand, beside the usual.
#[derive(Default)]
pub(super) struct KeyOrder {
    /// The classes of queues in which they take turns.
    pub(super) fair: Vec<i32>,
    /// Some queue lets more than one task of a key have its turn.
    pub(super) is_wide: bool,
}

/// Locks what a query names, in its order; NULL is nothing. The server has room for some thousands of locks, so a
/// transaction with more than 500 of them locks all that there are, at a gate through which everyone else goes together.
macro_rules! lock_names {
    ($gate:literal, $names:expr) => {
        concat!(
            "WITH names AS MATERIALIZED (SELECT DISTINCT name FROM (",
            $names,
            ") given(name) WHERE name IS NOT NULL),
             gate AS MATERIALIZED (SELECT n, CASE
                 WHEN n > 500 THEN pg_advisory_xact_lock(hashtextextended('",
            $gate,
            "', 0))
                 WHEN n > 0 THEN pg_advisory_xact_lock_shared(hashtextextended('",
            $gate,
            "', 0)) END FROM (SELECT count(*) AS n FROM names) counted)
             SELECT count(pg_advisory_xact_lock(hashtextextended('",
            $gate,
            " ' || name, 0))) FROM (SELECT name FROM names CROSS JOIN gate WHERE n <= 500 ORDER BY name) few"
        )
    };
}

/// Locks keys.
const LOCK: &str = lock_names!("pensum.key", "SELECT unnest($1::text[])");

/// Locks the keys of unfinished tasks, and those in `$2`.
pub(super) const LOCK_OF_TASKS: &str = lock_names!(
    "pensum.key",
    "SELECT scope FROM pensum.live WHERE row = ANY($1) UNION ALL SELECT unnest($2::text[])"
);

/// The same, and the keys of whoever depends on the tasks, and of their parents. One probe of an index each, whatever
/// the planner thinks of the tables.
pub(super) const LOCK_AROUND_TASKS: &str = lock_names!(
    "pensum.key",
    "SELECT scope FROM pensum.live WHERE row = ANY($1) UNION ALL SELECT unnest($2::text[])
     UNION ALL SELECT l.scope FROM unnest($1::bigint[]) AS given(row)
        CROSS JOIN LATERAL (SELECT dependent FROM pensum.dependency WHERE prerequisite = given.row OFFSET 0) d
        CROSS JOIN LATERAL (SELECT scope FROM pensum.live WHERE row = d.dependent OFFSET 0) l
     UNION ALL SELECT p.scope FROM unnest($1::bigint[]) AS given(row)
        CROSS JOIN LATERAL (SELECT parent FROM pensum.live WHERE row = given.row OFFSET 0) c
        CROSS JOIN LATERAL (SELECT scope FROM pensum.live WHERE row = c.parent OFFSET 0) p"
);

/// Locks unique keys of the namespace `$3`.
pub(super) const LOCK_UNIQUES: &str = lock_names!(
    "pensum.unique",
    "SELECT format('%s %s %s', $3::text, handler, key) FROM unnest($1::text[], $2::text[]) AS wanted(handler, key)"
);

/// Holds the row whose turn it is, so that no claim takes it meanwhile. One that a claim is just taking is waited for, and
/// then found to run. A statement of its own, for the next one must see what this one waited for.
const HOLD: &str = "SELECT row FROM pensum.live WHERE scope = ANY($1) AND gate = 0 FOR UPDATE";

/// What stands behind all deadlines, where the age of a row without one is added; `pensum_core::order` decides it.
macro_rules! undated {
    () => {
        "9223370937343148031"
    };
}
pub(super) use undated;

/// The best row of each key that may start at `$2`, unless one runs; of several that have the turn, as after a queue has
/// become narrower, the others lose it. Between the two that could be the best, the one in turn and the first of those behind
/// it, each probe reads one index entry. Among its key a row goes by its own age.
macro_rules! turns {
    () => {
        concat!(
            "(SELECT given.scope, (
            SELECT b.row FROM (
                (SELECT row, rank, CASE WHEN deadline < ",
            undated!(),
            " THEN deadline ELSE ",
            undated!(),
            " + row END AS place
                 FROM pensum.live WHERE scope = given.scope AND gate = 0
                 AND (timer_at IS NULL OR timer_at > $2) ORDER BY rank, deadline, row LIMIT 1)
                UNION ALL
                (SELECT row, rank, deadline AS place FROM pensum.live WHERE scope = given.scope AND gate = 7
                 AND (timer_at IS NULL OR timer_at > $2) ORDER BY rank, deadline, row LIMIT 1)) b
            WHERE NOT EXISTS (SELECT 1 FROM pensum.live r WHERE r.scope = given.scope AND r.gate = 6)
            ORDER BY b.rank, b.place, b.row LIMIT 1) AS head
          FROM unnest($1::text[]) AS given(scope)) turn"
        )
    };
}

/// Takes the turn from a row that is not the best any more.
const DEMOTE: &str = concat!(
    "UPDATE pensum.live l SET gate = 7, due_at = NULL, deadline = CASE WHEN l.deadline < ",
    undated!(),
    " THEN l.deadline ELSE ",
    undated!(),
    " + l.row END FROM ",
    turns!(),
    " WHERE l.scope = turn.scope AND l.gate = 0 AND l.row IS DISTINCT FROM turn.head"
);

/// Gives the turn to the best row, and notes when: it must not be seen to start before the one before it ended, by whatever
/// clock its claim was made. In a fair queue it is as young as the last turn of its key: `$3` are their classes.
const PROMOTE: &str = concat!(
    "UPDATE pensum.live l SET gate = 0, due_at = $2, deadline = CASE WHEN l.class <> ALL($3) OR l.deadline < ",
    undated!(),
    " THEN l.deadline ELSE ",
    undated!(),
    " + greatest(l.row, (SELECT t.number FROM pensum.turn t WHERE t.scope = l.scope)) END FROM ",
    turns!(),
    " WHERE l.row = turn.head AND l.gate = 7"
);

/// Notes that keys were served, in this order: each takes a number, which makes it younger than all tasks that there are.
const SERVE: &str = "INSERT INTO pensum.turn(scope, number)
    SELECT scope, nextval('pensum.task_row') FROM (
        SELECT scope FROM unnest($1::text[]) WITH ORDINALITY AS given(scope, at) ORDER BY at) served
    ON CONFLICT (scope) DO UPDATE SET number = EXCLUDED.number";

/// The statement that notes turns of keys, which must be locked; nothing for none. Numbers that the node has taken ahead for
/// new tasks are to be forgotten first: what it enqueues later is younger.
pub(super) fn serve(served: &[Name]) -> Option<Statement<'_>> {
    // A statement writes a row once.
    let mut seen = BTreeSet::new();
    let mut scopes: Vec<_> = served.iter().rev().filter(|scope| seen.insert(*scope)).collect();
    scopes.reverse();
    let texts = scopes.iter().map(|scope| Some(Cow::Borrowed(&***scope))).collect();
    (!scopes.is_empty()).then(|| Statement {
        sql: SERVE,
        params: vec![Value::Texts(texts)],
    })
}

pub(super) fn keys(scopes: &BTreeSet<Name>) -> Value<'_> {
    Value::Texts(scopes.iter().map(|s| Some(Cow::Borrowed(&**s))).collect())
}

/// The statement that locks keys; nothing for none.
pub(super) fn lock(scopes: &BTreeSet<Name>) -> Option<Statement<'_>> {
    (!scopes.is_empty()).then(|| Statement {
        sql: LOCK,
        params: vec![keys(scopes)],
    })
}

/// The statements that settle the turns of keys, after the rows are written; nothing for none.
pub(super) fn settle<'a>(scopes: &'a BTreeSet<Name>, order: &KeyOrder, now: Time) -> Vec<Statement<'a>> {
    if scopes.is_empty() {
        return Vec::new();
    }
    let (share, demote, promote) = match order.is_wide {
        true => (Some(width::SHARE), width::DEMOTE, width::PROMOTE),
        false => (None, DEMOTE, PROMOTE),
    };
    let with_time = || vec![keys(scopes), Value::Int8(Some(now.as_micros()))];
    let mut with_fair = with_time();
    with_fair.push(Value::Int4s(order.fair.iter().copied().map(Some).collect()));
    let hold = Statement {
        sql: HOLD,
        params: vec![keys(scopes)],
    };
    let turns = [
        Statement {
            sql: demote,
            params: with_time(),
        },
        Statement {
            sql: promote,
            params: with_fair,
        },
    ];
    iter::once(hold).chain(share).chain(turns).collect()
}
