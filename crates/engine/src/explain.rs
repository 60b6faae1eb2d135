//! Why a task does not run: every gate that is closed, since when, and when it is expected to open.

use pensum_core::agent::Demand;
use pensum_core::store::NodeRecord;
use pensum_core::task::Lifecycle;
use pensum_core::transition::EventKind;
use pensum_core::{NodeId, Priority, State, Status, TaskId, TaskRecord, Time, WaitingFor};
use serde::Serialize;

use crate::agents::{Offers, scarce_here};
use crate::breakers::OpenBreakers;
use crate::queues::{closed_queue, level_of, turn_of_key};
use crate::{Engine, EngineError};

/// How many unfinished dependencies are named.
const DEPENDENCIES_NAMED_MAX: usize = 20;

/// The answer to "why does it not run?".
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Explanation {
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// Its status.
    pub status: Status,
    /// The answer in a sentence.
    pub summary: String,
    /// Every gate that is closed; for a task that runs or has ended, the one that says so.
    pub gates: Vec<Gate>,
}

/// Something that a task waits for.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Gate {
    /// Which gate.
    pub gate: GateKind,
    /// What is the matter, and what would open it.
    pub message: String,
    /// Closed since; where that is not known, the task has stood before it since.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub since: Option<Time>,
    /// Expected to open at this time by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub opens_at: Option<Time>,
}

/// The gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateKind {
    /// Tasks that must end first.
    Dependencies,
    /// A start time, a retry's delay, or a time that its handler waits for.
    Time,
    /// Someone paused it.
    Paused,
    /// Another task of its key runs, or has its turn.
    Key,
    /// No handler or capability for it: neither here nor with any agent.
    Capability,
    /// It is kept for an agent, or the agents that could run it take no work.
    Agent,
    /// It asks for more resources than what could run it has, or has free.
    Resources,
    /// Every agent that could run it is full.
    Slot,
    /// A circuit breaker is open, or finds out whether it may close.
    Breaker,
    /// Its queue is closed or full, or this node takes nothing from it.
    Queue,
    /// The rate of its queue leaves too few starts for now.
    Rate,
    /// Every slot of this node is taken.
    Slots,
    /// It runs alone, or waits for something that does.
    Alone,
    /// A signal that its handler waits for.
    Signal,
    /// Children that its handler waits for.
    Children,
    /// This node takes no work.
    Node,
    /// Nothing: it is about to be claimed, after what goes before it.
    Turn,
    /// It runs.
    Running,
    /// It has ended.
    Ended,
}

pub(crate) async fn explain(engine: &Engine, namespace: &str, task: TaskId) -> Result<Explanation, EngineError> {
    let now = engine.now();
    let record = engine
        .store()
        .task(namespace, task)
        .await?
        .ok_or(EngineError::NotFound(task))?;
    let status = Status::of(&record.lifecycle, now);
    let mut gates = Vec::new();
    paused(&record.lifecycle, &mut gates);
    match record.lifecycle.state {
        State::Completed | State::Failed | State::Cancelled => gates.push(ended(&record)),
        State::Running => gates.push(running(engine, namespace, &record, now).await?),
        State::Waiting => gates.push(waiting(engine, namespace, &record).await?),
        State::Queued => queued(engine, namespace, &record, now, &mut gates).await?,
    }
    let summary = match gates.as_slice() {
        [] => "It is ready and starts as soon as a node asks for work.".to_owned(),
        [only] => sentence(&only.message),
        [first, rest @ ..] => format!("{} ({} more)", sentence(&first.message), rest.len()),
    };
    Ok(Explanation {
        task,
        status,
        summary,
        gates,
    })
}

pub(crate) fn gate(gate: GateKind, message: impl Into<String>) -> Gate {
    Gate {
        gate,
        message: message.into(),
        since: None,
        opens_at: None,
    }
}

fn sentence(message: &str) -> String {
    let mut chars = message.chars();
    let first = chars
        .next()
        .map(|c| c.to_uppercase().collect::<String>())
        .unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

fn paused(lifecycle: &Lifecycle, gates: &mut Vec<Gate>) {
    if lifecycle.state.is_terminal() {
        return;
    }
    if lifecycle.paused_at.is_some() {
        gates.push(Gate {
            since: lifecycle.paused_at,
            ..gate(GateKind::Paused, "it is paused; resume it")
        });
    }
}

fn ended(record: &TaskRecord) -> Gate {
    let why = record
        .error
        .as_ref()
        .map(|e| format!(": {}: {}", e.kind, e.message))
        .unwrap_or_default();
    let then = match record.lifecycle.state {
        State::Completed => "",
        _ => "; retry it to run it again",
    };
    let message = format!("it has ended as {}{why}{then}", record.lifecycle.state);
    Gate {
        since: record.lifecycle.finished_at,
        ..gate(GateKind::Ended, message)
    }
}

async fn running(engine: &Engine, namespace: &str, record: &TaskRecord, now: Time) -> Result<Gate, EngineError> {
    let lifecycle = &record.lifecycle;
    let offers = Offers::read(engine, namespace, now).await?;
    let place = |holder: NodeId| match offers.agent_of(holder) {
        Some(agent) => format!(" with agent `{agent}`"),
        None => format!(" on {holder}"),
    };
    let place = lifecycle.lease.map(|lease| place(lease.node)).unwrap_or_default();
    let mut message = format!("it runs{place}, attempt {}", lifecycle.attempt);
    if lifecycle.cancel_requested_at.is_some() {
        message.push_str(", and was asked to stop");
    }
    if lifecycle.pause_requested_at.is_some() {
        message.push_str(", and was asked to pause");
    }
    if let Some(lease) = lifecycle.lease
        && lease.expires_at < now
    {
        message.push_str("; its lease has run out, so it is about to be taken away");
    }
    Ok(Gate {
        since: lifecycle.started_at,
        ..gate(GateKind::Running, message)
    })
}

async fn waiting(engine: &Engine, namespace: &str, record: &TaskRecord) -> Result<Gate, EngineError> {
    let lifecycle = &record.lifecycle;
    let events = engine.store().events(namespace, record.id).await?;
    let waits = events.iter().rev().find(|event| event.kind == EventKind::Waiting);
    let closed = match lifecycle.waiting_for {
        Some(WaitingFor::Children) => gate(GateKind::Children, "its handler waits for its children to end"),
        Some(WaitingFor::Signal) => {
            let name = lifecycle.signal.as_deref().unwrap_or_default();
            gate(
                GateKind::Signal,
                format!("its handler waits for the signal `{name}`; send it"),
            )
        }
        _ => gate(GateKind::Time, "its handler waits for a time"),
    };
    Ok(Gate {
        since: waits.map(|event| event.at),
        opens_at: lifecycle.wake_at,
        ..closed
    })
}

async fn queued(
    engine: &Engine,
    namespace: &str,
    record: &TaskRecord,
    now: Time,
    gates: &mut Vec<Gate>,
) -> Result<(), EngineError> {
    let lifecycle = &record.lifecycle;
    if lifecycle.waiting_for == Some(WaitingFor::Dependencies) {
        gates.push(dependencies(engine, namespace, record, now).await?);
    }
    if lifecycle.run_at > now {
        let message = match lifecycle.backing_off {
            true => format!(
                "it failed {} time(s) and waits for its next attempt",
                lifecycle.failures
            ),
            false => "its start time has not come".to_owned(),
        };
        let since = match lifecycle.backing_off {
            true => last_end(engine, namespace, record.id).await?,
            false => None,
        };
        gates.push(Gate {
            since: Some(since.unwrap_or(record.created_at)),
            opens_at: Some(lifecycle.run_at),
            ..gate(GateKind::Time, message)
        });
    }
    gates.extend(turn_of_key(engine, namespace, record, now).await?);
    let demand = Demand::of(&record.spec);
    let offers = Offers::read(engine, namespace, now).await?;
    let suits_here = demand.suits_node(&record.spec.handler, &engine.capabilities());
    let suits_agents = offers.suit(&record.spec.handler, &demand);
    let queue = &record.spec.queue;
    let is_elsewhere = engine.queues().is_some_and(|queues| !queues.contains(queue));
    if !suits_here && !suits_agents {
        gates.push(capability(engine, record, &demand, &offers, others(engine, now).await?));
    }
    if is_elsewhere && !suits_agents {
        gates.push(gate(
            GateKind::Queue,
            format!("this node takes nothing from the queue `{queue}`; another has to"),
        ));
    }
    let breakers = OpenBreakers::read(engine, namespace, now).await?;
    gates.extend(breakers.of_handler(&record.spec.handler));
    gates.extend(closed_queue(engine, namespace, record, now, gates.is_empty()).await?);
    let is_here = suits_here && !is_elsewhere;
    gates.extend(offers.closed(record, &demand, &breakers, is_here, gates.is_empty()));
    if !is_here && gates.is_empty() {
        gates.extend(offers.short(engine, namespace, &record.spec.handler, &demand).await?);
    }
    if is_here
        && !suits_agents
        && let Some(mut scarce) = scarce_here(engine, &demand, gates.is_empty())
    {
        scarce.message.push_str(&elsewhere(others(engine, now).await?));
        gates.push(scarce);
    }
    if lifecycle.suspect {
        let message = "a node died soon after it started; it runs alone next time, once this node runs nothing else";
        gates.push(gate(GateKind::Alone, message));
    }
    if gates.is_empty() {
        let level = level_of(engine, namespace, record, now).await?;
        gates.push(turn(engine, record, level, is_here));
    }
    // Where nobody noted when a gate closed, the task has stood before it since it was ready to start, or was there at all.
    let since = lifecycle.ready_at.unwrap_or(record.created_at);
    for gate in gates {
        gate.since = gate.since.or(Some(since));
    }
    Ok(())
}

/// How many nodes work on the store beside this one.
async fn others(engine: &Engine, now: Time) -> Result<usize, EngineError> {
    let nodes = engine.store().nodes(now).await?;
    let is_other = |node: &&NodeRecord| node.status == "running" && node.id != engine.node().id.to_string();
    Ok(nodes.iter().filter(is_other).count())
}

/// When the last attempt of a task ended.
async fn last_end(engine: &Engine, namespace: &str, task: TaskId) -> Result<Option<Time>, EngineError> {
    let attempts = engine.store().executions(namespace, task).await?;
    Ok(attempts.iter().filter_map(|attempt| attempt.finished_at).max())
}

/// Of a task that only has to be claimed: why that has not happened.
fn turn(engine: &Engine, record: &TaskRecord, level: Priority, is_here: bool) -> Gate {
    let (running, slots) = (engine.running(), engine.node().slots);
    let risen = match level > record.spec.priority {
        true => format!(", risen to {level} by waiting"),
        false => String::new(),
    };
    if !is_here {
        return gate(
            GateKind::Turn,
            "it is ready and is given to an agent when one that could run it asks for work",
        );
    }
    if !engine.is_accepting() {
        return gate(
            GateKind::Node,
            "this node takes no work: it is not started, or shuts down",
        );
    }
    if running >= slots {
        return gate(
            GateKind::Slots,
            format!("all {slots} slots of this node are taken; it waits for its turn{risen}"),
        );
    }
    let priority = record.spec.priority.as_str();
    gate(
        GateKind::Turn,
        format!("it is ready and is claimed after what goes before it (priority {priority}{risen})"),
    )
}

async fn dependencies(engine: &Engine, namespace: &str, record: &TaskRecord, now: Time) -> Result<Gate, EngineError> {
    let mut named = Vec::new();
    let mut unfinished = 0;
    for id in &record.depends_on {
        if let Some(dependency) = engine.store().task(namespace, *id).await?
            && !dependency.lifecycle.state.is_terminal()
        {
            unfinished += 1;
            if named.len() < DEPENDENCIES_NAMED_MAX {
                named.push(format!("{id} ({})", Status::of(&dependency.lifecycle, now)));
            }
        }
    }
    let unfinished = unfinished.max(record.lifecycle.unmet as usize);
    let more = match unfinished - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "it waits for {unfinished} task(s) to end first: {}{more}",
        named.join(", ")
    );
    Ok(Gate {
        since: Some(record.created_at),
        ..gate(GateKind::Dependencies, message)
    })
}

fn capability(engine: &Engine, record: &TaskRecord, demand: &Demand, offers: &Offers, others: usize) -> Gate {
    let offered = engine.capabilities();
    let also = demand.requires.iter().filter(|need| **need != record.spec.handler);
    let missing: Vec<_> = std::iter::once(&record.spec.handler)
        .chain(also)
        .filter(|need| !offered.contains(need))
        .map(|n| format!("`{n}`"))
        .collect();
    let message = format!(
        "this node offers no {}; it waits for a node or an agent that does; {}{}",
        missing.join(", "),
        offers.in_words(),
        elsewhere(others)
    );
    gate(GateKind::Capability, message)
}

/// What a node says where another one might not be short of what it is short of.
fn elsewhere(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => "; what the other node offers, that one explains".to_owned(),
        _ => format!("; what the {others} other nodes offer, those explain"),
    }
}
