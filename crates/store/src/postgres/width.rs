//! Turns of keys where more than one task of a key may have its turn, because their queues say so.
//!
//! Whoever settles the turns of a key reads the widths of its queues in the very statement that gives them, so nothing
//! depends on what a node has heard. Only that there are wide queues at all does a node remember: one that has not heard of
//! the first gives each key one turn, and those that have mend that.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use pensum_core::{Name, Time};
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::key::{self, KeyOrder, undated};
use super::pool::{Durability, Statement};

/// How many keys one step looks through.
const KEYS: i64 = 500;
/// How often a step is tried again at once that met others.
const TRIES_MAX: usize = 10;

/// The widths of all classes that are not one wide, as one value: looked up in the tables, they would be most of the work.
macro_rules! widths {
    () => {
        "widths AS MATERIALIZED (SELECT jsonb_object_agg(k.id, q.per_key) AS of_class FROM pensum.queue q
            JOIN pensum.class k ON k.namespace = q.namespace AND k.queue = q.name WHERE q.per_key > 1)"
    };
}

/// How many tasks of a key may have their turn beside one of a class.
macro_rules! width {
    ($class:literal) => {
        concat!(
            "coalesce(((SELECT of_class FROM widths) ->> ",
            $class,
            "::text)::integer, 1)"
        )
    };
}

/// [`pensum_core::order::KeyTurns`] in SQL: for each of some keys, those tasks that could start at `$2` of which one may have
/// the turn, and whether it should. Among its key a row goes by its own age. Of those that stand behind, no more are looked
/// at than the first of them lets have their turn.
macro_rules! candidates {
    ($keys:literal) => {
        concat!(
            "SELECT given.scope, c.row, c.gate,
                held.n + row_number() OVER best <= least(held.width, min(c.width) OVER best) AS has_turn
             FROM ",
            $keys,
            " CROSS JOIN LATERAL (
                SELECT coalesce(sum(running.n), 0)::bigint AS n, min(running.width) AS width FROM (
                    SELECT count(*) AS n, ",
            width!("r.class"),
            " AS width FROM pensum.live r WHERE r.scope = given.scope AND r.gate = 6 GROUP BY r.class) running) held
             CROSS JOIN LATERAL (
                (SELECT l.row, l.gate, l.rank, CASE WHEN l.deadline < ",
            undated!(),
            " THEN l.deadline ELSE ",
            undated!(),
            " + l.row END AS place, ",
            width!("l.class"),
            " AS width FROM pensum.live l WHERE l.scope = given.scope AND l.gate = 0
                 AND (l.timer_at IS NULL OR l.timer_at > $2))
                UNION ALL
                (SELECT w.row, w.gate, w.rank, w.deadline AS place, ",
            width!("w.class"),
            " AS width FROM pensum.live w WHERE w.scope = given.scope AND w.gate = 7
                 AND (w.timer_at IS NULL OR w.timer_at > $2) ORDER BY w.rank, w.deadline, w.row
                 LIMIT greatest((SELECT ",
            width!("f.class"),
            " FROM pensum.live f WHERE f.scope = given.scope AND f.gate = 7
                    AND (f.timer_at IS NULL OR f.timer_at > $2) ORDER BY f.rank, f.deadline, f.row LIMIT 1) - held.n, 0))) c
             WINDOW best AS (PARTITION BY given.scope ORDER BY c.rank, c.place, c.row)"
        )
    };
}

/// Those of some keys that should have their turn.
macro_rules! turns {
    () => {
        concat!(
            "WITH ",
            widths!(),
            ", turns AS MATERIALIZED (SELECT row FROM (",
            candidates!("unnest($1::text[]) AS given(scope)"),
            ") candidate WHERE has_turn)"
        )
    };
}

/// Takes the turn from rows that should not have it any more.
pub(super) const DEMOTE: &str = concat!(
    turns!(),
    " UPDATE pensum.live l SET gate = 7, due_at = NULL, deadline = CASE WHEN l.deadline < ",
    undated!(),
    " THEN l.deadline ELSE ",
    undated!(),
    " + l.row END WHERE l.scope = ANY($1) AND l.gate = 0 AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.row = l.row)"
);

/// Where a row stands that has the turn of its key. In a fair queue it is as young as the last turn of its key: `$3` are
/// their classes.
macro_rules! stands {
    () => {
        concat!(
            "CASE WHEN l.class <> ALL($3) OR l.deadline < ",
            undated!(),
            " THEN l.deadline ELSE ",
            undated!(),
            " + greatest(l.row, (SELECT t.number FROM pensum.turn t WHERE t.scope = l.scope)) END"
        )
    };
}

/// Gives the turn to those that should have it, and notes when; in a fair queue those that have it go behind what was ready
/// when their key was served.
pub(super) const PROMOTE: &str = concat!(
    turns!(),
    " UPDATE pensum.live l SET gate = 0, due_at = CASE l.gate WHEN 7 THEN $2 ELSE l.due_at END, deadline = ",
    stands!(),
    " WHERE l.row = ANY(ARRAY(SELECT row FROM turns)) AND (l.gate = 7 OR l.gate = 0 AND l.deadline <> ",
    stands!(),
    ")"
);

/// The next keys after `$1`: up to which, how many, and of which of them others have their turn at `$2` than should.
const NEXT: &str = concat!(
    "WITH RECURSIVE ",
    widths!(),
    ", next(scope, n) AS (
        (SELECT scope, 1::bigint FROM pensum.live WHERE scope > $1 ORDER BY scope LIMIT 1)
        UNION ALL
        SELECT (SELECT l.scope FROM pensum.live l WHERE l.scope > next.scope ORDER BY l.scope LIMIT 1), next.n + 1
        FROM next WHERE next.scope IS NOT NULL AND next.n < $3)
     SELECT (SELECT max(scope) FROM next), (SELECT count(scope) FROM next), ARRAY(SELECT DISTINCT candidate.scope FROM (",
    candidates!("(SELECT scope FROM next WHERE scope IS NOT NULL) given"),
    ") candidate WHERE candidate.has_turn <> (candidate.gate = 0))"
);

/// Held by whoever settles turns by the widths of queues, until its transaction ends.
pub(super) const SHARE: Statement<'static> = Statement {
    sql: "SELECT pg_advisory_xact_lock_shared(hashtextextended('pensum.width', 0))",
    params: Vec::new(),
};

/// Waits for whoever is settling turns by the widths as they were: what it does is seen by whoever looks for keys to settle
/// after this transaction.
pub(super) const CHANGE: Statement<'static> = Statement {
    sql: "SELECT pg_advisory_xact_lock(hashtextextended('pensum.width', 0))",
    params: Vec::new(),
};

/// Settles the turns of the next keys after this one where others have them than should; answers up to which key, nothing
/// after the last.
pub(super) async fn walk(inner: &Arc<Inner>, from: &str, now: Time) -> Result<String, Fault> {
    let params = [
        (&from as _, Type::TEXT),
        (&now.as_micros() as _, Type::INT8),
        (&KEYS as _, Type::INT8),
    ];
    let found = inner.pool.read(NEXT, &params).await?;
    let Some(found) = found.first() else {
        return Ok(String::new());
    };
    let (last, count): (Option<String>, i64) = (found.try_get(0)?, found.try_get(1)?);
    let unsettled: Vec<&str> = found.try_get(2)?;
    let scopes: BTreeSet<Name> = unsettled.into_iter().map(Name::from).collect();
    if !scopes.is_empty() {
        let order = KeyOrder {
            is_wide: true,
            ..inner.key_order()
        };
        let mut statements: Vec<Statement<'_>> = key::lock(&scopes).into_iter().collect();
        statements.extend(key::settle(&scopes, &order, now));
        inner.pool.begin(Durability::Relaxed).await?.commit(&statements).await?;
        inner.wake.any_room();
        inner.wake.ready();
    }
    Ok(last.filter(|_| count == KEYS).unwrap_or_default())
}

/// The same for all keys, after a queue has become wider or narrower. What cannot be done now is done by the pass that ends
/// what is overdue.
pub(super) async fn settle_all(inner: &Arc<Inner>, now: Time) {
    let (mut from, mut tries) = (Cow::Borrowed(""), 0);
    loop {
        match walk(inner, &from, now).await {
            Ok(last) if last.is_empty() => return,
            Ok(last) => (from, tries) = (Cow::Owned(last), 0),
            Err(fault) if fault.is_contention() && tries < TRIES_MAX => tries += 1,
            Err(fault) => {
                tracing::debug!(?fault, "turns of keys could not be settled after a change");
                return;
            }
        }
    }
}
