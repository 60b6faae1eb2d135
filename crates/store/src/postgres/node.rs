//! The nodes that share the store.

use std::borrow::Cow;
use std::sync::Arc;

use pensum_core::store::{NODE_LISTED, NodeBeat, NodeRecord, NodeReply};
use pensum_core::{NodeId, Time};
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::pool::{Durability, Statement, Value, text};

/// Notes that a node lives, and what the time is.
pub(super) async fn heartbeat(inner: &Arc<Inner>, beat: &NodeBeat, now: Time) -> Result<NodeReply, Fault> {
    let int8 = |n: usize| Value::Int8(Some(i64::try_from(n).unwrap_or(i64::MAX)));
    let sql =
        "INSERT INTO pensum.node AS n (id, name, version, address, started_at, seen_at, expires_at, slots, running,
               commands) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0)
               ON CONFLICT (id) DO UPDATE SET seen_at = EXCLUDED.seen_at, expires_at = EXCLUDED.expires_at,
               slots = EXCLUDED.slots, running = EXCLUDED.running, address = EXCLUDED.address
               RETURNING n.commands, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let params = vec![
        Value::Int8(Some(beat.node.0 as i64)),
        Value::Text(Some(text(&beat.name))),
        Value::Text(Some(text(&beat.version))),
        Value::Text(beat.address.as_deref().map(Cow::Borrowed)),
        Value::Int8(Some(beat.started_at.as_micros())),
        Value::Int8(Some(now.as_micros())),
        Value::Int8(Some(now.plus(beat.ttl).as_micros())),
        int8(beat.slots),
        int8(beat.running),
    ];
    let tx = inner.pool.begin(Durability::Relaxed).await?;
    let asked = inner.clock.ask();
    let answers = tx.commit(&[Statement { sql, params }]).await?;
    let Some(row) = answers.iter().flatten().next() else {
        return Ok(NodeReply::default());
    };
    inner.clock.told(asked, row.try_get(1)?);
    Ok(NodeReply {
        commands: row.try_get::<_, i64>(0)? as u64,
    })
}

/// A node has ended in good order.
pub(super) async fn leave(inner: &Arc<Inner>, node: NodeId) -> Result<(), Fault> {
    let sql = "DELETE FROM pensum.node WHERE id = $1";
    let statement = Statement {
        sql,
        params: vec![Value::Int8(Some(node.0 as i64))],
    };
    inner
        .pool
        .begin(Durability::Relaxed)
        .await?
        .commit(&[statement])
        .await?;
    Ok(())
}

/// The nodes that said something within the last hour.
pub(super) async fn nodes(inner: &Arc<Inner>, now: Time) -> Result<Vec<NodeRecord>, Fault> {
    let since = now.minus(NODE_LISTED).as_micros();
    let sql = "SELECT id, name, version, address, started_at, seen_at, expires_at, slots, running FROM pensum.node
               WHERE seen_at >= $1 ORDER BY started_at, id";
    let mut nodes = Vec::new();
    for row in inner.pool.read(sql, &[(&since, Type::INT8)]).await? {
        let alive = row.try_get::<_, i64>(6)? > now.as_micros();
        nodes.push(NodeRecord {
            id: NodeId(row.try_get::<_, i64>(0)? as u64).to_string(),
            name: row.try_get::<_, &str>(1)?.into(),
            status: if alive { "running" } else { "lost" }.to_owned(),
            version: row.try_get(2)?,
            address: row.try_get(3)?,
            started_at: Time::from_micros(row.try_get(4)?),
            seen_at: Time::from_micros(row.try_get(5)?),
            slots: row.try_get::<_, i64>(7)? as u64,
            running: row.try_get::<_, i64>(8)? as u64,
        });
    }
    Ok(nodes)
}

/// Asks the server for its time.
pub(super) async fn set_clock(inner: &Arc<Inner>) -> Result<(), Fault> {
    let asked = inner.clock.ask();
    let rows = inner
        .pool
        .read("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint", &[])
        .await?;
    if let Some(row) = rows.first() {
        inner.clock.told(asked, row.try_get(0)?);
    }
    Ok(())
}
