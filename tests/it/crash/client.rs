//! People and programs that ask for something over HTTP, and write down what they were told.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use pensum_core::TaskId;
use pensum_sim::{
    ACT, Act, COMMON, OnFailure, Order, PAUSABLE, QueueOrder, QueuePlan, SIGNAL, TaskPlan, What, agent_id, queue_name,
    skill_name,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::nodes::{Incarnation, Machines};
use super::plan;
use super::record::Record;
use crate::harness::{items, text, time_in};

/// How long a client waits for an answer where its plan does not say.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often a client asks in all, where its request has a key and its fate is unknown.
const TRIES: usize = 3;
/// How long a client waits before it asks again, or for a node that is not there.
const RECONNECT: Duration = Duration::from_millis(125);
/// How often a client looks for a node that runs.
const CONNECTS_MAX: u32 = 80;

/// What all clients share: connections, and the ids that they were told.
pub(super) struct Clients<'a> {
    record: &'a Record,
    machines: &'a Machines,
    runtime: Runtime,
    http: reqwest::Client,
    ids: Mutex<BTreeMap<u32, TaskId>>,
}

impl Clients<'_> {
    pub(super) fn new<'a>(record: &'a Record, machines: &'a Machines) -> Clients<'a> {
        // The client asks for a TLS provider even where it speaks plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Clients {
            record,
            machines,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            ids: Mutex::default(),
        }
    }

    /// An answer, or why there is none.
    pub(super) fn ask(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        key: Option<&str>,
        patience: Duration,
    ) -> Result<(u16, Value), String> {
        let mut request = self.http.request(method, url).timeout(patience);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = self.runtime.block_on(async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            let bytes = response.bytes().await?;
            Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
        });
        answer.map_err(|error: reqwest::Error| format!("{error:?}"))
    }

    /// Some node that runs.
    pub(super) fn any_node(&self) -> Option<Incarnation> {
        self.machines.find(0)
    }

    /// The node that a client meant, or another one; `None` when none comes up for a while.
    fn reach(&self, node: usize) -> Option<Incarnation> {
        for _ in 0..CONNECTS_MAX {
            if let Some(found) = self.machines.find(node) {
                return Some(found);
            }
            std::thread::sleep(RECONNECT);
        }
        None
    }

    /// Submits a batch; every other client names its request, and repeats it until it knows.
    pub(super) fn submit(&self, submission: u64, node: usize, patience_ms: Option<u64>, plans: &[TaskPlan]) {
        let patience = patience_ms.map_or(PATIENCE, Duration::from_millis);
        let key = submission.is_multiple_of(2).then(|| format!("submission {submission}"));
        let (path, body) = self.request(plans);
        for attempt in 0..TRIES {
            let Some(found) = self.reach(node + attempt) else {
                return;
            };
            self.record.add(What::Submits {
                submission,
                node: found.name,
                labels: plans.iter().map(|plan| plan.label).collect(),
            });
            let url = format!("{}{path}", found.base);
            let (why, unsure) = match self.ask(Method::POST, &url, Some(&body), key.as_deref(), patience) {
                Ok((200 | 201, answer)) => return self.acknowledged(submission, plans, &answer),
                // It may have been kept before the store fell silent.
                Ok((status, answer)) => (format!("{status}: {}", answer["detail"]), status >= 500),
                Err(why) => (why, true),
            };
            self.record.add(What::Refused {
                submission,
                why,
                unsure,
            });
            if !unsure || key.is_none() {
                return;
            }
            std::thread::sleep(RECONNECT);
        }
    }

    fn acknowledged(&self, submission: u64, plans: &[TaskPlan], answer: &Value) {
        let told: Vec<TaskId> = match &answer["ids"] {
            Value::Null => vec![id(&answer["id"])],
            ids => items(ids).iter().map(id).collect(),
        };
        assert_eq!(told.len(), plans.len(), "{answer}");
        let labels = plans.iter().map(|plan| plan.label);
        let tasks: Vec<(u32, TaskId)> = labels.zip(told).collect();
        self.ids.lock().unwrap().extend(tasks.iter().copied());
        // Which of them are new shows in what the store keeps.
        let tasks = tasks.into_iter().map(|(label, id)| (label, id, true)).collect();
        self.record.add(What::Acknowledged { submission, tasks });
    }

    /// Path and body of a submission, as far as the client knows of what its tasks depend on.
    fn request(&self, plans: &[TaskPlan]) -> (&'static str, Value) {
        let ids = self.ids.lock().unwrap();
        let reference = |label: &u32| match plans.iter().any(|plan| plan.label == *label) {
            true => Some(name(*label)),
            false => ids.get(label).map(ToString::to_string),
        };
        let mut tasks: Vec<Value> = plans
            .iter()
            .map(|plan| {
                let on: Vec<String> = plan.depends_on.iter().filter_map(reference).collect();
                task(plan, &on)
            })
            .collect();
        if let [task] = &mut tasks[..] {
            return ("/api/v1/tasks", task.take());
        }
        for (task, plan) in tasks.iter_mut().zip(plans) {
            task["ref"] = json!(name(plan.label));
        }
        ("/api/v1/tasks/batch", json!({ "tasks": tasks }))
    }

    /// Asks once for something, and hears what became of it, or does not.
    pub(super) fn order(&self, request: u64, node: usize, label: u32, order: Order) {
        let Some(task) = self.ids.lock().unwrap().get(&label).copied() else {
            return;
        };
        let Some(found) = self.reach(node) else { return };
        self.record.add(What::Orders {
            request,
            node: found.name,
            task,
            order,
        });
        let url = format!("{}/api/v1/tasks/{task}", found.base);
        let post = |what: &str, body: Value| (Method::POST, format!("{url}/{what}"), Some(body));
        let (method, url, body) = match order {
            Order::Cancel => post("cancel", json!({})),
            Order::Pause => post("pause", json!({})),
            Order::Resume => post("resume", json!({})),
            Order::Retry => post("retry", json!({})),
            Order::RunNow => post("execute", json!({})),
            Order::Signal => post("signal", json!({ "name": SIGNAL })),
            Order::Delete => (Method::DELETE, url, None),
            Order::Promote => (Method::PATCH, url, Some(json!({ "priority": "critical" }))),
        };
        let answer = match self.ask(method, &url, body.as_ref(), None, PATIENCE) {
            Ok((200 | 202 | 204, _)) => Some(true),
            Ok((404 | 409, _)) => Some(false),
            Ok((status, answer)) if status < 500 => panic!("{order:?} is answered by {status}: {answer}"),
            _ => None,
        };
        self.record.add(What::Ordered { request, answer });
    }

    /// Asks once for a change of a queue, and does not mind what became of it.
    pub(super) fn change_queue(&self, node: usize, queue: u8, order: QueueOrder) {
        let Some(found) = self.reach(node) else { return };
        let url = format!("{}/api/v1/queues/{}", found.base, queue_name(queue));
        let (method, url, body) = match order {
            QueueOrder::Width { max } => (Method::PUT, url, json!({ "max_concurrent": max })),
            QueueOrder::Put { plan } => (Method::PUT, url, settings(plan)),
            QueueOrder::Open => (Method::PUT, url, json!({})),
            QueueOrder::Pause => (Method::POST, format!("{url}/pause"), json!({})),
            QueueOrder::Resume => (Method::POST, format!("{url}/resume"), json!({})),
        };
        match self.ask(method, &url, Some(&body), None, PATIENCE) {
            // A queue that nobody has put, and that holds nothing, is unknown.
            Ok((200 | 201 | 404, _)) | Err(_) => {}
            Ok((status, answer)) if status < 500 => panic!("{order:?} is answered by {status}: {answer}"),
            Ok(_) => {}
        }
    }

    /// Lets both queues of the plans start their tasks again.
    pub(super) fn resume_queues(&self) {
        for queue in 0..2 {
            self.change_queue(0, queue, QueueOrder::Resume);
        }
    }
}

fn id(value: &Value) -> TaskId {
    text(value).parse().unwrap()
}

/// What a task is called in the history.
pub(super) fn name(label: u32) -> String {
    format!("t{label}")
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

/// What a queue is to be like.
fn settings(plan: QueuePlan) -> Value {
    let mut settings = json!({ "fair": plan.fair, "persistent": !plan.volatile });
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            settings[field] = value;
        }
    };
    set("max_concurrent", plan.max.map(|max| json!(max)));
    set("max_depth", plan.depth.map(|depth| json!(depth)));
    set("max_age", plan.max_age_ms.map(|ms| json!(seconds(ms))));
    let is_bounded = plan.depth.is_some() || plan.max_age_ms.is_some();
    set("when_full", (plan.drops && is_bounded).then(|| json!("drop_oldest")));
    let rate = plan
        .rate
        .map(|rate| json!({ "starts": rate.starts, "per": seconds(rate.per_ms), "burst": rate.burst }));
    set("rate_limit", rate);
    set("ageing", plan.ageing_ms.map(|ms| json!(seconds(ms))));
    settings
}

fn task(plan: &TaskPlan, depends_on: &[String]) -> Value {
    let (role, count, ms) = plan::role(&plan.act);
    let handler = match plan.act {
        Act::Pausable { .. } => PAUSABLE,
        _ if plan.demand.is_some() => COMMON,
        _ => ACT,
    };
    let mut task = json!({
        "handler": handler,
        "parameters": {
            "label": name(plan.label), "role": role, "count": count.to_string(), "seconds": seconds(ms).to_string(),
        },
        "priority": match plan.priority { 0 => "low", 1 => "normal", 2 => "high", _ => "critical" },
        "timeout": seconds(plan.timeout_ms),
        "max_retries": plan.retries,
        "retry": { "strategy": "fixed", "delay": 0.25, "jitter": false },
        "depends_on": depends_on,
        "on_dependency_failure": match plan.on_failure {
            OnFailure::Cancel => "cancel",
            OnFailure::Ignore => "ignore",
            OnFailure::Run => "run",
        },
    });
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            task[field] = value;
        }
    };
    set("delay", (plan.delay_ms > 0).then(|| json!(seconds(plan.delay_ms))));
    set("queue", plan.queue.map(|queue| json!(&*queue_name(queue))));
    set("key", plan.key.map(|key| json!(format!("key-{key}"))));
    let unique = |key| json!({ "key": format!("unique-{key}"), "on_conflict": "keep" });
    set("unique", plan.unique.map(unique));
    let expires = |ms| json!(time_in(Duration::from_millis(ms)));
    set("expires_at", plan.expires_ms.map(expires));
    set("units", plan.units.map(|units| json!(units)));
    set("on_limit", plan.rejects.then(|| json!("reject")));
    if let Some(demand) = &plan.demand {
        let skills: Vec<String> = demand.skills.iter().map(|skill| skill_name(*skill)).collect();
        set("requires", (!skills.is_empty()).then(|| json!(skills)));
        set("agent_id", demand.prefers.map(|agent| json!(agent_id(agent))));
    }
    set("queue_timeout", plan.queue_timeout_ms.map(|ms| json!(seconds(ms))));
    task
}
