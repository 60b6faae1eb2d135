//! A scenario, lived through by real processes: first with accidents, then without.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pensum_core::TaskId;
use pensum_core::store::Verified;
use pensum_core::task::Execution;
use pensum_sim::{Action, Executor, Final, Outcome, Scenario, Step, What, story};
use reqwest::Method;
use serde_json::Value;

use super::agents::Agents;
use super::client::Clients;
use super::judge::judge;
use super::lies::find_lies;
use super::nodes::Machines;
use super::place::{Kind, Place};
use super::record::{Record, now};
use super::{plan, promises};
use crate::cluster;
use crate::harness::{items, text};

/// How long everything has to come to an end once nothing goes wrong any more.
const CONVERGES_IN: Duration = Duration::from_secs(90);
/// Longest answer to a reader, who asks again.
const ANSWERS_IN: Duration = Duration::from_secs(10);
/// Between two looks at what has not ended.
const LOOK: Duration = Duration::from_millis(250);
const OPEN: &str = "status=pending,ready,running,retrying,paused&limit=200";

/// What one scenario, or many, were like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) seeds: u32,
    pub(super) tasks: u32,
    pub(super) runs: u32,
    pub(super) kills: u32,
    pub(super) freezes: u32,
    pub(super) restarts: u32,
    pub(super) outages: u32,
    /// Agents that were killed, and runs that agents had.
    pub(super) agent_kills: u32,
    pub(super) agent_runs: u32,
    /// Submissions that were refused, and tasks that were dropped or ended with their process.
    pub(super) refused: u32,
    pub(super) dropped: u32,
    pub(super) abandoned: u32,
    /// Falsified histories that the judge saw through.
    pub(super) lies: u32,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.tasks += other.tasks;
        self.runs += other.runs;
        self.kills += other.kills;
        self.freezes += other.freezes;
        self.restarts += other.restarts;
        self.outages += other.outages;
        self.agent_kills += other.agent_kills;
        self.agent_runs += other.agent_runs;
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.abandoned += other.abandoned;
        self.lies += other.lies;
    }
}

impl Tally {
    /// Counts what shows in the history and in what is left.
    fn look(&mut self, outcome: &Outcome) {
        for entry in &outcome.entries {
            match &entry.what {
                What::Runs { executor, .. } => {
                    self.runs += 1;
                    self.agent_runs += u32::from(matches!(executor, Executor::Agent { .. }));
                }
                What::Refused { unsure: false, .. } => self.refused += 1,
                _ => {}
            }
        }
        for task in &outcome.tasks {
            let kind = task.record.error.as_ref().map_or("", |error| error.kind.as_str());
            self.dropped += u32::from(kind == "dropped");
            self.abandoned += u32::from(kind == "process_ended");
        }
    }
}

/// Looks again and again whether the store gives an agent more than it said, until all is over.
fn watch(agents: &Agents, clients: &Clients<'_>) {
    while !agents.is_over() {
        if let Some(found) = clients.any_node()
            && let Ok((200, body)) = clients.ask(
                Method::GET,
                &format!("{}/api/v1/agents", found.base),
                None,
                None,
                ANSWERS_IN,
            )
        {
            for agent in items(&body["items"]) {
                let (has, may) = (agent["active_tasks"].as_u64(), agent["max_concurrent_tasks"].as_u64());
                if has > may {
                    agents.complain(format!("an agent has more than it said: {agent}"));
                }
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Lives through the scenario; its figures, and the story of what must not have been.
pub(super) fn live(scenario: &Scenario, kind: Kind) -> (Tally, Result<(), String>) {
    let place = Place::new(
        kind,
        plan::has(scenario, |action| matches!(action, Action::StoreAway { .. })),
    );
    let record = Record::new();
    let restarts = scenario.nodes.iter().map(|node| Duration::from_millis(node.restart_ms));
    let machines = Machines::new(restarts, !scenario.agents.is_empty());
    let agents = Agents::new(&scenario.agents);
    let clients = Clients::new(&record, &machines);
    let began = Instant::now();
    let stuck = std::thread::scope(|scope| {
        for (node, plan) in scenario.nodes.iter().enumerate() {
            let (server, machines, record) = (place.node(plan.slots), &machines, &record);
            scope.spawn(move || machines.supervise(node, server, record));
        }
        for agent in 0..scenario.agents.len() {
            let (agents, machines, record, place) = (&agents, &machines, &record, &place);
            scope.spawn(move || agents.supervise(agent, place.path(), machines, record));
        }
        if !scenario.agents.is_empty() {
            let (agents, clients) = (&agents, &clients);
            scope.spawn(move || watch(agents, clients));
        }
        std::thread::scope(|steps| {
            for (number, step) in scenario.steps.iter().enumerate() {
                let (clients, machines, record, place) = (&clients, &machines, &record, &place);
                let agents = &agents;
                steps.spawn(move || {
                    std::thread::sleep(Duration::from_millis(step.at_ms).saturating_sub(began.elapsed()));
                    match step.action {
                        Action::Agent { agent, order, .. } => agents.befall(agent, order, record),
                        _ => act(number as u64, step, clients, machines, record, place),
                    }
                });
            }
        });
        // All accidents are over: who stood still goes on, and whoever is dead is on the way back.
        record.add(What::Healed);
        let stuck = converge(&clients, &machines);
        agents.leave();
        machines.leave();
        stuck
    });
    let lived = began.elapsed();
    drop(clients);
    let pids = machines.pids.into_inner().unwrap();
    let count = |is: fn(&What) -> bool| record.count(is);
    let mut tally = Tally {
        seeds: 1,
        kills: count(|what| matches!(what, What::NodeDies(_))),
        freezes: count(|what| matches!(what, What::NodeFreezes(..))),
        restarts: count(|what| matches!(what, What::NodeStarts(name) if name.life > 0)),
        outages: count(|what| matches!(what, What::StoreBack)),
        ..Tally::default()
    };
    let (agent_kills, complaints) = agents.end();
    tally.agent_kills = agent_kills;
    let (tasks, executions, verified) = cluster::runtime().block_on(left(&place.url()));
    let mut outcome = Outcome {
        dawn: record.dawn,
        entries: Vec::new(),
        tasks,
        verified,
        stuck: [stuck, machines.complaints.into_inner().unwrap(), complaints].concat(),
        lived,
    };
    tally.tasks = outcome.tasks.len() as u32;
    let mut verdict = judge(scenario, &record, &place.effects(), &pids, &mut outcome);
    let broken = promises::broken(scenario, kind, &outcome, &executions);
    if !broken.is_empty() {
        let story = verdict.err().unwrap_or_else(|| story(scenario, &outcome, &[], false));
        verdict = Err(format!("{story}\n{}", broken.join("\n")));
    }
    tally.look(&outcome);
    if verdict.is_ok() {
        tally.lies = find_lies(scenario, &mut outcome);
    }
    (tally, verdict)
}

fn act(number: u64, step: &Step, clients: &Clients<'_>, machines: &Machines, record: &Record, place: &Place) {
    match &step.action {
        Action::Submit {
            node,
            patience_ms,
            tasks,
        } => clients.submit(number, *node, *patience_ms, tasks),
        Action::Order { node, task, order } => clients.order(number, *node, *task, *order),
        Action::Queue { node, queue, order } => clients.change_queue(*node, *queue, *order),
        // What befalls agents has its place, and plans of real processes have no breakers.
        Action::Agent { .. } | Action::Breaker { .. } => {}
        Action::Kill { node } => machines.kill(*node),
        Action::Freeze { node, for_ms } => machines.freeze(*node, Duration::from_millis(*for_ms), record),
        Action::Restart { node } => machines.stop(*node),
        Action::StoreAway { for_ms } => {
            let time = Duration::from_millis(*for_ms);
            let outage = || {
                record.add(What::StoreAway(time));
                std::thread::sleep(time);
            };
            if place.outage(outage) {
                record.add(What::StoreBack);
            }
        }
    }
}

/// Waits until all nodes run and every task has ended; what is paused is resumed. What does not end is told.
fn converge(clients: &Clients<'_>, machines: &Machines) -> Vec<String> {
    let end = Instant::now() + CONVERGES_IN;
    loop {
        let open = match (machines.all_run(), machines.find(0)) {
            (true, Some(found)) => {
                let url = format!("{}/api/v1/tasks", found.base);
                let answer = clients.ask(Method::GET, &format!("{url}?{OPEN}"), None, None, ANSWERS_IN);
                answer.map(|(status, body)| (status, body, url))
            }
            _ => Err("not all nodes run".to_owned()),
        };
        let is_late = Instant::now() > end;
        match open {
            Ok((200, body, _)) if items(&body["items"]).is_empty() => return Vec::new(),
            Ok((200, body, url)) => {
                let open = items(&body["items"]);
                if is_late {
                    return open.iter().map(|task| explained(clients, &url, task)).collect();
                }
                clients.resume_queues();
                for task in open.iter().filter(|task| is_held(task)) {
                    let url = format!("{url}/{}/resume", text(&task["id"]));
                    // One that has ended meanwhile refuses, which is fine; and whoever does not answer is asked again.
                    let _ = clients.ask(Method::POST, &url, Some(&serde_json::json!({})), None, ANSWERS_IN);
                }
            }
            Ok((status, body, _)) if is_late => return vec![format!("the nodes answer {status}: {body}")],
            Err(why) if is_late => return vec![format!("the nodes do not answer: {why}")],
            Ok(_) | Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}

fn is_held(task: &Value) -> bool {
    task["status"] == "paused" || !task["paused_at"].is_null()
}

fn explained(clients: &Clients<'_>, url: &str, task: &Value) -> String {
    let url = format!("{url}/{}/explain", text(&task["id"]));
    let why = clients.ask(Method::GET, &url, None, None, ANSWERS_IN);
    format!(
        "{} is {} {} s after the last accident: {why:?}",
        task["parameters"]["label"],
        task["status"],
        CONVERGES_IN.as_secs()
    )
}

/// Every task that the store has, with its history and its attempts, and what the store's own check says.
async fn left(url: &str) -> (Vec<Final>, BTreeMap<TaskId, Vec<Execution>>, Verified) {
    let store = pensum_store::connect(url, "a test of crashes").await.unwrap();
    let (mut tasks, mut executions) = (Vec::new(), BTreeMap::new());
    let mut page = pensum_core::query::Page {
        limit: 200,
        before_row: None,
    };
    loop {
        let filter = pensum_core::query::TaskFilter::default();
        let found = store.tasks("default", filter, page.clone(), now()).await.unwrap();
        for record in found.items {
            let events = store.events("default", record.id).await.unwrap();
            executions.insert(record.id, store.executions("default", record.id).await.unwrap());
            tasks.push(Final { record, events });
        }
        match found.next {
            Some(next) => page.before_row = Some(next),
            None => break,
        }
    }
    (tasks, executions, store.verify().await.unwrap())
}
