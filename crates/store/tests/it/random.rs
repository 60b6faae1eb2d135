//! Random operations on two stores at once: whatever the model answers, the other store must answer too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::agent::{AgentCommand, AgentSettings, Amounts};
use pensum_core::breaker::{BreakerCommand, BreakerSettings};
use pensum_core::model::ModelStore;
use pensum_core::outcome::Wait;
use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings, Rate, WhenFull};
use pensum_core::store::{
    AgentClaim, Applied, Beat, Call, Checkpoint, ClaimRequest, Command, Finish, LeaseRef, NodeBeat, Rejected, Renewal,
    Retention, Store, StoreError,
};
use pensum_core::task::{Dependency, OnConflict, OnDependencyFailure, OnLimit, Resources, Unique};
use pensum_core::{
    ErrorInfo, ExecutionId, Json, Name, NewTask, NodeId, Outcome, Page, Priority, Spec, State, Status, TaskFilter,
    TaskId, Time,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A task to enqueue, as plain choices.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    priority: i64,
    key: Option<u8>,
    unique: Option<(u8, u8, bool)>,
    delay: Option<u8>,
    deadline: Option<u8>,
    expires: Option<u8>,
    impatient: bool,
    retries: u32,
    policy: u8,
    queue: u8,
    demand: u8,
    /// Not durable: the process that accepts it.
    process: Option<u64>,
    units: Option<u32>,
    reject: bool,
    /// How far back the tasks that it depends on were enqueued.
    depends_on: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Enqueue(Vec<Plan>),
    Claim {
        node: u64,
        slots: usize,
    },
    Finish {
        lease: u8,
        how: u8,
    },
    Renew,
    Checkpoint {
        lease: u8,
        step: u8,
    },
    Command {
        task: u8,
        what: u8,
    },
    Pass(u16),
    Reap,
    Prune,
    Heartbeat(u64),
    Leave(u64),
    /// What runs is given back, and the process that owns the store ends and starts again.
    Restart,
    Queue {
        queue: u8,
        what: u8,
    },
    Agent {
        agent: u8,
        what: u8,
        session: u64,
    },
    Breaker {
        what: u8,
    },
    Poll {
        agent: u8,
        session: u64,
        slots: usize,
        knows: bool,
    },
}

impl Op {
    /// Whose turn it was is not carried into a copy, where a new round begins.
    pub(crate) fn without_turns(self) -> Op {
        match self {
            Op::Queue {
                queue,
                what: AGEING_AND_FAIR | FAIR,
            } => Op::Queue { queue, what: AGEING },
            Op::Queue { queue, what } if what == *WIDE.end() => Op::Queue {
                queue,
                what: *WIDE.start(),
            },
            other => other,
        }
    }
}

fn claim_request(node: NodeId, slots: usize) -> ClaimRequest {
    ClaimRequest::new(node, "node", slots, Duration::from_secs(30))
}

/// The queues that tasks are enqueued in.
const QUEUES: [&str; 3] = ["default", "narrow", "other"];

const AGENTS: [&str; 2] = ["first", "second"];

/// What an agent registers as.
fn agent_settings(what: u8) -> AgentSettings {
    let capabilities: &[&str] = [&["noop"] as &[&str], &["noop", "x"], &["x"]][usize::from(what % 3)];
    AgentSettings {
        capabilities: capabilities.iter().map(|c| Name::from(*c)).collect(),
        max_concurrent_tasks: u32::from(what) + 1,
        resources: (what != 1).then(|| cores(f64::from(what) + 1.5)),
        ..AgentSettings::default()
    }
}

/// What a breaker covers: all that runs, or an agent.
fn breaker_settings(what: u8) -> BreakerSettings {
    BreakerSettings {
        handlers: if what == 3 {
            Vec::new()
        } else {
            vec![Name::from("noop")]
        },
        agents: if what == 4 {
            Vec::new()
        } else {
            vec![Name::from(AGENTS[0])]
        },
        failures: Some(2),
        failure_permille: (what == 5).then_some(300),
        calls_min: 3,
        open_for: Duration::from_secs(10).into(),
        probes: u32::from(what) - 2,
        ..BreakerSettings::default()
    }
}

fn cores(cpu_cores: f64) -> Resources {
    Resources {
        cpu_cores: Some(cpu_cores),
        ..Resources::default()
    }
}

/// The sessions of agents have numbers of their own.
fn session(agent: u8, session: u64) -> NodeId {
    NodeId(100 + 10 * u64::from(agent) + session)
}

/// A queue without what is numbered otherwise in each store.
fn without_rows(queue: QueueRecord) -> QueueRecord {
    QueueRecord {
        process_to: queue.process_to.map(|_| 0),
        ..queue
    }
}

const AGEING: u8 = 10;
const AGEING_AND_FAIR: u8 = 11;
const FAIR: u8 = 12;
/// Each with a width of its own.
const WIDE: std::ops::RangeInclusive<u8> = 20..=22;

/// What is asked of a queue: settings, or a command.
fn queue_asked(what: u8) -> Result<QueueSettings, QueueCommand> {
    let plain = QueueSettings::default();
    let rate = |starts, burst| {
        let per = Duration::from_secs(10).into();
        Some(Rate { starts, per, burst })
    };
    match what {
        0 => Err(QueueCommand::Pause),
        1 | 2 => Err(QueueCommand::Resume),
        3 | 4 => Err(QueueCommand::Process),
        5 | 6 => Ok(QueueSettings {
            max_concurrent: Some(u32::from(what) - 4),
            ..plain
        }),
        7 => Ok(QueueSettings {
            rate: rate(3, 2),
            ..plain
        }),
        8 => Ok(QueueSettings {
            auto_start: false,
            max_concurrent: Some(1),
            ..plain
        }),
        9 => Ok(QueueSettings {
            rate: rate(7, 1),
            max_concurrent: Some(3),
            ..plain
        }),
        AGEING | AGEING_AND_FAIR => Ok(QueueSettings {
            ageing: Some(Duration::from_secs(10 * u64::from(what) - 95).into()),
            fair: what == AGEING_AND_FAIR,
            ..plain
        }),
        FAIR => Ok(QueueSettings { fair: true, ..plain }),
        15 | 16 => Ok(QueueSettings {
            max_depth: Some(u32::from(what) - 12),
            when_full: if what == 15 {
                WhenFull::Refuse
            } else {
                WhenFull::DropOldest
            },
            ..plain
        }),
        17 | 18 => Ok(QueueSettings {
            max_age: Some(Duration::from_secs(25).into()),
            when_full: if what == 17 {
                WhenFull::Refuse
            } else {
                WhenFull::DropOldest
            },
            ..plain
        }),
        19 => Ok(QueueSettings {
            rate: rate(4, 6),
            max_depth: Some(5),
            max_age: Some(Duration::from_secs(40).into()),
            when_full: WhenFull::DropOldest,
            max_concurrent: Some(2),
            ..plain
        }),
        20 | 21 => Ok(QueueSettings {
            max_concurrent_per_key: Some(u32::from(what) - 18),
            ..plain
        }),
        22 => Ok(QueueSettings {
            max_concurrent_per_key: Some(2),
            max_concurrent: Some(3),
            fair: true,
            ageing: Some(Duration::from_secs(15).into()),
            ..plain
        }),
        _ => Ok(plain),
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let depends_on = prop::collection::vec(0u8..12, 0..3);
    let rare = |most: u8| prop::option::weighted(0.2, 0..most);
    (
        (
            1i64..=5,
            prop::option::weighted(0.3, 0u8..3),
            prop::option::weighted(0.2, (0u8..2, 0u8..3, any::<bool>())),
        ),
        (rare(60), rare(60), rare(40), prop::bool::weighted(0.1)),
        (
            0u32..3,
            0u8..3,
            (
                0u8..3,
                prop_oneof![3 => Just(0u8), 2 => 1u8..7],
                prop::option::weighted(0.25, 1u64..4),
                prop::option::weighted(0.3, 2u32..9),
                prop::bool::weighted(0.15),
            ),
            prop_oneof![3 => Just(Vec::new()), 1 => depends_on],
        ),
    )
        .prop_map(
            |(
                (priority, key, unique),
                (delay, deadline, expires, impatient),
                (retries, policy, (queue, demand, process, units, reject), depends_on),
            )| {
                Plan {
                    priority,
                    key,
                    unique,
                    delay,
                    deadline,
                    expires,
                    impatient,
                    retries,
                    policy,
                    queue,
                    demand,
                    process,
                    units,
                    reject,
                    depends_on,
                }
            },
        )
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::collection::vec(plan(), 1..5).prop_map(Op::Enqueue),
        4 => (1u64..3, 0usize..5).prop_map(|(node, slots)| Op::Claim { node, slots }),
        6 => (any::<u8>(), 0u8..12).prop_map(|(lease, how)| Op::Finish { lease, how }),
        1 => Just(Op::Renew),
        1 => (any::<u8>(), 0u8..4).prop_map(|(lease, step)| Op::Checkpoint { lease, step }),
        4 => (any::<u8>(), 0u8..9).prop_map(|(task, what)| Op::Command { task, what }),
        2 => (0u16..40).prop_map(Op::Pass),
        2 => Just(Op::Reap),
        1 => Just(Op::Prune),
        3 => (1u64..4).prop_map(Op::Heartbeat),
        1 => (1u64..4).prop_map(Op::Leave),
        3 => (0u8..3, 0u8..24).prop_map(|(queue, what)| Op::Queue { queue, what }),
        3 => (0u8..2, 0u8..12, 0u64..3).prop_map(|(agent, what, session)| Op::Agent { agent, what, session }),
        2 => (0u8..6).prop_map(|what| Op::Breaker { what }),
        4 => (0u8..2, 0u64..3, 0usize..5, prop::bool::weighted(0.8))
            .prop_map(|(agent, session, slots, knows)| Op::Poll { agent, session, slots, knows }),
    ]
}

/// One store with the ids and leases that it gave, in the order that both stores share.
#[derive(Clone)]
pub(crate) struct Side {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) leases: Vec<LeaseRef>,
    /// The executions of all claims.
    pub(crate) have: Vec<ExecutionId>,
    /// Opens the store of a process that has ended.
    pub(crate) reopen: Option<Reopen>,
}

/// Opens a store again.
pub(crate) type Reopen = Arc<dyn Fn() -> Arc<dyn Store> + Send + Sync>;

impl Side {
    pub(crate) fn of(store: Arc<dyn Store>) -> Side {
        Side {
            store,
            tasks: Vec::new(),
            leases: Vec::new(),
            have: Vec::new(),
            reopen: None,
        }
    }

    fn index(&self, id: TaskId) -> Option<usize> {
        self.tasks.iter().position(|t| *t == id)
    }

    fn ended(&self, ended: &[(TaskId, State)]) -> Vec<(Option<usize>, State)> {
        let mut ended: Vec<_> = ended.iter().map(|(id, state)| (self.index(*id), *state)).collect();
        ended.sort_by_key(|(index, state)| (*index, state.code()));
        ended
    }

    fn lease(&self, number: u8) -> Option<LeaseRef> {
        (!self.leases.is_empty()).then(|| self.leases[usize::from(number) % self.leases.len()])
    }

    fn task(&self, number: u8) -> Option<TaskId> {
        (!self.tasks.is_empty()).then(|| self.tasks[usize::from(number) % self.tasks.len()])
    }

    /// What a per-item result says, without the ids that differ between the stores.
    fn told(&self, result: Result<Applied, Rejected>) -> String {
        match result {
            Ok(applied) => format!(
                "{:?} {:?} {:?}",
                applied.state,
                self.ended(&applied.ended),
                applied.interrupt
            ),
            Err(rejected) => self.rejection(&rejected),
        }
    }

    fn rejection(&self, rejected: &Rejected) -> String {
        self.mask(format!("{rejected:?}"))
    }

    fn mask(&self, mut text: String) -> String {
        for (index, id) in self.tasks.iter().enumerate() {
            text = text.replace(&id.to_string(), &format!("task {index}"));
        }
        text
    }

    pub(crate) async fn perform(&mut self, op: &Op, now: Time) -> String {
        let call = Call::new("tester", now);
        match op {
            Op::Enqueue(plans) => self.enqueue(&call, plans).await,
            Op::Claim { node, slots } => {
                let mut request = claim_request(NodeId(*node), *slots);
                request.resources = (*node == 1).then(|| Amounts::of(&cores(3.0)));
                self.claim(request, now).await
            }
            Op::Finish { lease, how } => {
                let draw = usize::from(*lease);
                let Some(lease) = self.lease(*lease) else {
                    return String::new();
                };
                let finish = Finish {
                    draw: 0.25,
                    ..Finish::new(lease, outcome(*how, now))
                };
                let spawned = if *how == 11 {
                    let mut child = NewTask::new(Spec::new("noop", Json::null()));
                    child.spec.queue = Name::from(QUEUES[draw % QUEUES.len()]);
                    child.spec.details_mut().on_limit = (draw % 2 == 1).then_some(OnLimit::Reject);
                    vec![child]
                } else {
                    Vec::new()
                };
                let result = self
                    .store
                    .finish(
                        vec![Finish {
                            spawn: spawned,
                            ..finish
                        }],
                        now,
                    )
                    .await
                    .unwrap()
                    .remove(0);
                if let Ok(applied) = &result {
                    self.tasks.extend(&applied.spawned);
                }
                self.told(result)
            }
            Op::Renew => {
                let beats = self
                    .leases
                    .iter()
                    .map(|l| Beat {
                        lease: *l,
                        progress: None,
                        logs: vec![],
                    })
                    .collect();
                let renewed = self.store.renew(beats, Duration::from_secs(30), now).await.unwrap();
                format!(
                    "{renewed:?} {}",
                    renewed.iter().filter(|r| **r == Renewal::Lost).count()
                )
            }
            Op::Checkpoint { lease, step } => {
                let Some(lease) = self.lease(*lease) else {
                    return String::new();
                };
                let json = Json::from(serde_json::json!({ "step": step }));
                let checkpoint = Checkpoint {
                    state: Some(json.clone()),
                    step: Some((Name::from(format!("step {step}")), json)),
                    ..Checkpoint::new(lease)
                };
                let result = self.store.checkpoint(checkpoint, now).await.unwrap();
                self.told(result)
            }
            Op::Command { task, what } => {
                let Some(id) = self.task(*task) else {
                    return String::new();
                };
                let process = (*what == 4).then_some(NodeId(2));
                let call = Call { process, ..call };
                let result = self
                    .store
                    .command(&call, vec![id], command(*what))
                    .await
                    .unwrap()
                    .remove(0);
                self.told(result)
            }
            Op::Pass(_) => String::new(),
            Op::Restart => {
                for lease in self.leases.clone() {
                    let finish = Finish::new(lease, Outcome::Released);
                    // Those of before are lost.
                    let _ = self.store.finish(vec![finish], now).await.unwrap();
                }
                // So that nothing is left that a first pass might end in another order.
                self.store.reap(now, 1000).await.unwrap();
                match &self.reopen {
                    Some(reopen) => {
                        self.store.close().await.unwrap();
                        self.store = reopen();
                    }
                    None => {
                        for node in 1..5 {
                            self.store.leave(NodeId(node), now).await.unwrap();
                        }
                    }
                }
                let reaped = self.store.reap(now, 1000).await.unwrap();
                // The end of the process was worked off by the opening, where there was one.
                format!("{} {} {}", reaped.leases_expired, reaped.overdue, reaped.woken)
            }
            Op::Reap => {
                let reaped = self.store.reap(now, 1000).await.unwrap();
                format!(
                    "{} {} {} {} {:?}",
                    reaped.leases_expired,
                    reaped.overdue,
                    reaped.woken,
                    reaped.abandoned,
                    self.ended(&reaped.ended)
                )
            }
            Op::Prune => {
                let minute = Duration::from_secs(60);
                let retention = Retention {
                    completed: minute,
                    failed: 2 * minute,
                };
                self.store
                    .prune(retention, now, 1000)
                    .await
                    .unwrap()
                    .removed
                    .to_string()
            }
            Op::Heartbeat(node) => {
                let beat = NodeBeat {
                    node: NodeId(*node),
                    name: Name::from("node"),
                    version: "1".to_owned(),
                    address: None,
                    started_at: Time::EPOCH,
                    slots: 4,
                    running: 0,
                    ttl: Duration::from_secs(15),
                };
                self.store.heartbeat(beat, now).await.unwrap().commands.to_string()
            }
            Op::Queue { queue, what } => {
                let name = Name::from(QUEUES[usize::from(*queue)]);
                let asked = match queue_asked(*what) {
                    Ok(settings) => self.store.put_queue(&call, name, settings, None).await,
                    Err(command) => self.store.command_queue(&call, name, command).await,
                };
                match asked {
                    Ok(found) => format!("{:?}", without_rows(found)),
                    Err(StoreError::Rejected(rejected)) => self.rejection(&rejected),
                    Err(other) => panic!("{other}"),
                }
            }
            Op::Agent {
                agent,
                what,
                session: number,
            } => {
                let name = Name::from(AGENTS[usize::from(*agent)]);
                let session = session(*agent, *number);
                let asked = match what {
                    0..=3 => self.store.put_agent(&call, name, agent_settings(*what)).await.map(Some),
                    4 => self
                        .store
                        .command_agent(&call, name, AgentCommand::Drain)
                        .await
                        .map(Some),
                    5 | 6 => self
                        .store
                        .command_agent(&call, name, AgentCommand::Undrain)
                        .await
                        .map(Some),
                    7 => self.store.delete_agent(&call, name).await.map(|()| None),
                    8 => self.store.close_session(&call, name, session).await.map(|()| None),
                    9 => self.store.beat_agent(&call, name, Some(session)).await.map(Some),
                    _ => self.store.open_session(&call, name, session).await.map(Some),
                };
                match asked {
                    Ok(found) => format!("{found:?}"),
                    Err(StoreError::Rejected(rejected)) => self.rejection(&rejected),
                    Err(other) => panic!("{other}"),
                }
            }
            Op::Breaker { what } => {
                let name = Name::from("breaker");
                let asked = match what {
                    0 => self
                        .store
                        .command_breaker(&call, name, BreakerCommand::Trip)
                        .await
                        .map(Some),
                    1 => self
                        .store
                        .command_breaker(&call, name, BreakerCommand::Reset)
                        .await
                        .map(Some),
                    2 => self.store.delete_breaker(&call, name).await.map(|()| None),
                    what => {
                        let settings = breaker_settings(*what);
                        self.store.put_breaker(&call, name, settings, None).await.map(Some)
                    }
                };
                match asked {
                    Ok(found) => format!("{found:?}"),
                    Err(StoreError::Rejected(rejected)) => self.rejection(&rejected),
                    Err(other) => panic!("{other}"),
                }
            }
            Op::Poll {
                agent,
                session: number,
                slots,
                knows,
            } => {
                let name = Name::from(AGENTS[usize::from(*agent)]);
                let have = if *knows { self.have.clone() } else { Vec::new() };
                let request = ClaimRequest {
                    executor: name.clone(),
                    agent: Some(AgentClaim {
                        namespace: Name::from("default"),
                        name,
                        have,
                    }),
                    ..claim_request(session(*agent, *number), *slots)
                };
                self.claim(request, now).await
            }
            Op::Leave(node) => {
                self.store.leave(NodeId(*node), now).await.unwrap();
                String::new()
            }
        }
    }

    async fn enqueue(&mut self, call: &Call, plans: &[Plan]) -> String {
        let tasks = plans
            .iter()
            .enumerate()
            .map(|(item, plan)| self.new_task(plan, item, call.now))
            .collect();
        match self.store.enqueue(call, tasks).await {
            Ok(made) => {
                self.tasks.extend(made.iter().filter(|m| m.created).map(|m| m.id));
                format!(
                    "{:?}",
                    made.iter().map(|m| (self.index(m.id), m.created)).collect::<Vec<_>>()
                )
            }
            Err(StoreError::Rejected(rejected)) => self.rejection(&rejected),
            Err(other) => panic!("{other}"),
        }
    }

    fn new_task(&self, plan: &Plan, item: usize, now: Time) -> NewTask {
        let later = |seconds: u8| now.plus(Duration::from_secs(seconds.into()));
        let mut task = NewTask::new(Spec::new("noop", Json::null()));
        task.spec.priority = Priority::from_level(plan.priority).unwrap();
        task.spec.queue = Name::from(QUEUES[usize::from(plan.queue)]);
        task.spec.key = plan.key.map(|k| Name::from(format!("key {k}")));
        task.spec.deadline = plan.deadline.map(later);
        task.spec.max_retries = Some(plan.retries);
        task.run_at = plan.delay.map(later);
        let details = task.spec.details_mut();
        match plan.demand {
            1 => details.requires = vec![Name::from("x")],
            2 | 3 => details.agent_id = Some(AGENTS[usize::from(plan.demand) - 2].to_owned()),
            4 => details.resources = Some(cores(1.5)),
            5 => details.resources = Some(cores(2.5)),
            6 => {
                details.agent_id = Some(AGENTS[0].to_owned());
                details.resources = Some(cores(0.5));
            }
            _ => {}
        }
        details.units = plan.units;
        details.on_limit = plan.reject.then_some(OnLimit::Reject);
        details.expires_at = plan.expires.map(later);
        details.queue_timeout = plan.impatient.then(|| Duration::from_secs(20).into());
        details.on_dependency_failure = OnDependencyFailure::from_code(plan.policy.into()).unwrap();
        task.unique = plan.unique.map(|(key, on_conflict, ttl)| {
            let on_conflict = [OnConflict::Keep, OnConflict::Replace, OnConflict::Reject][usize::from(on_conflict)];
            let ttl = ttl.then(|| Duration::from_secs(50));
            Box::new(Unique {
                key: Name::from(format!("unique {key}")),
                ttl,
                on_conflict,
            })
        });
        if let Some(process) = plan.process {
            task.accept_by(NodeId(process));
        }
        for back in &plan.depends_on {
            let back = usize::from(*back);
            // Small numbers name an earlier item of the same batch, larger ones a task of before.
            let dependency = match item.checked_sub(back + 1) {
                Some(earlier) => Dependency::Item(earlier),
                None => match self.tasks.len().checked_sub(back + 1) {
                    Some(index) => Dependency::Task(self.tasks[index]),
                    None => continue,
                },
            };
            if !task.depends_on.contains(&dependency) {
                task.depends_on.push(dependency);
            }
        }
        task
    }

    async fn claim(&mut self, request: ClaimRequest, now: Time) -> String {
        // The model lets tasks rise as they are claimed, the others when they are looked after.
        self.store.reap(now, 0).await.unwrap();
        let mut claimed = match self.store.claim(request, now).await {
            Ok(claimed) => claimed,
            Err(StoreError::Rejected(rejected)) => return self.rejection(&rejected),
            Err(other) => panic!("{other}"),
        };
        if claimed.iter().any(|c| self.leases.contains(&c.lease)) {
            // What is answered again has no order.
            claimed.sort_by_key(|c| c.lease.task.row());
        }
        self.leases.extend(claimed.iter().map(|c| c.lease));
        self.have.extend(claimed.iter().map(|c| ExecutionId {
            task: c.lease.task,
            attempt: c.lifecycle.attempt,
        }));
        let told = claimed
            .iter()
            .map(|c| (self.index(c.lease.task), c.lifecycle.attempt, c.checkpoint.clone()));
        format!("{:?}", told.collect::<Vec<_>>())
    }

    /// Everything that can be read, without what may differ.
    pub(crate) async fn picture(&self, now: Time) -> BTreeMap<String, String> {
        let mut picture = BTreeMap::new();
        for (index, id) in self.tasks.iter().enumerate() {
            let Some(record) = self.store.task("default", *id).await.unwrap() else {
                picture.insert(format!("task {index:03}"), "gone".to_owned());
                continue;
            };
            let mut lifecycle = record.lifecycle.clone();
            let lease = lifecycle.lease.take().map(|l| (l.node, l.expires_at));
            let depends_on: Vec<_> = record.depends_on.iter().map(|d| self.index(*d)).collect();
            let error = record.error.as_ref().map(|e| &e.kind);
            picture.insert(
                format!("task {index:03}"),
                self.mask(format!(
                    "{lifecycle:?} {lease:?} {:?} {error:?} {:?} {depends_on:?}",
                    record.result, record.spec
                )),
            );
            let executions = self.store.executions("default", *id).await.unwrap();
            let told: Vec<_> = executions
                .iter()
                .map(|e| (e.attempt, e.status, e.started_at, e.finished_at))
                .collect();
            picture.insert(format!("task {index:03} executions"), format!("{told:?}"));
            let events = self.store.events("default", *id).await.unwrap();
            let told: Vec<_> = events.iter().map(|e| (e.kind, e.at)).collect();
            picture.insert(format!("task {index:03} events"), format!("{told:?}"));
        }
        for status in Status::ALL {
            let filter = TaskFilter {
                status: vec![status],
                ..TaskFilter::default()
            };
            let page = self
                .store
                .tasks(
                    "default",
                    filter,
                    Page {
                        limit: 200,
                        before_row: None,
                    },
                    now,
                )
                .await
                .unwrap();
            let listed: Vec<_> = page.items.iter().map(|t| self.index(t.id)).collect();
            picture.insert(format!("list {status}"), format!("{listed:?}"));
        }
        let nodes = self.store.nodes(now).await.unwrap();
        picture.insert("nodes".to_owned(), format!("{nodes:?}"));
        let queues = self.store.queues("default").await.unwrap();
        let queues: Vec<QueueRecord> = queues.into_iter().map(without_rows).collect();
        picture.insert("queues".to_owned(), format!("{queues:?}"));
        let breakers = self.store.breakers("default").await.unwrap();
        picture.insert("breakers".to_owned(), format!("{breakers:?}"));
        let agents = self.store.agents("default").await.unwrap();
        picture.insert("agents".to_owned(), format!("{agents:?}"));
        picture.insert(
            "counts".to_owned(),
            format!("{:?}", self.store.counts("default", now).await.unwrap()),
        );
        picture
    }
}

fn outcome(how: u8, now: Time) -> Outcome {
    let error = ErrorInfo::new("boom", "it broke");
    let later = now.plus(Duration::from_secs(15));
    match how {
        0..=2 => Outcome::Done(Json::from(serde_json::json!(how))),
        3 | 4 => Outcome::Retry { error, after: None },
        5 => Outcome::Retry {
            error,
            after: Some(Duration::from_secs(3)),
        },
        6 => Outcome::Fail(error),
        7 => Outcome::Again {
            after: Duration::from_secs(2),
            checkpoint: Some(Json::from(serde_json::json!("again"))),
        },
        8 => Outcome::Wait {
            on: Wait::Until(later),
            checkpoint: None,
        },
        9 => Outcome::Wait {
            on: Wait::Signal {
                name: Name::from("go"),
                until: Some(later),
            },
            checkpoint: None,
        },
        10 => Outcome::Released,
        _ => Outcome::Wait {
            on: Wait::Children,
            checkpoint: None,
        },
    }
}

fn command(what: u8) -> Command {
    match what {
        0 => Command::Cancel { reason: None },
        1 => Command::Pause,
        2 | 3 => Command::Resume,
        4 | 5 => Command::Retry,
        6 => Command::RunNow,
        7 => Command::Signal {
            name: Name::from("go"),
            payload: Json::null(),
        },
        _ => Command::Delete,
    }
}

/// Lets `test` see `cases` random values; one that fails is cut down in at most so many steps.
pub(crate) fn try_random<S: Strategy>(
    cases: u32,
    shrink_steps: u32,
    values: &S,
    test: impl AsyncFn(S::Value) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let config = Config {
        cases,
        max_shrink_iters: shrink_steps,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(values, |value| runtime.block_on(test(value)))
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Runs `cases` random histories on the model and on what `make` gives.
pub(crate) fn compare<F>(cases: u32, make: impl Fn() -> F)
where
    F: Future<Output = Arc<dyn Store>>,
{
    // In most of the histories the claim order is another one from the beginning, or keys are wide.
    let rule = prop_oneof![AGEING..=FAIR, WIDE];
    let rules = prop::option::weighted(0.7, (rule.clone(), rule));
    let histories = (rules, prop::collection::vec(op(), 1..60));
    try_random(cases, 2_000, &histories, async |(rules, mut ops)| {
        let rules = rules.into_iter().flat_map(|(first, second)| [(0, first), (1, second)]);
        ops.splice(0..0, rules.map(|(queue, what)| Op::Queue { queue, what }));
        history(&ops, Side::of(make().await)).await
    });
}

/// The same with a process that ends and starts again. What agents hold outlives it, and they are left out.
pub(crate) fn compare_with_restarts(cases: u32, make: impl Fn() -> Reopen) {
    let step = prop_oneof![1 => Just(Op::Restart), 12 => op()];
    let histories = prop::collection::vec(step, 1..60);
    try_random(cases, 500, &histories, async |mut ops| {
        ops.retain(|op| !matches!(op, Op::Agent { .. } | Op::Poll { .. }));
        let reopen = make();
        let store = reopen();
        let side = Side {
            reopen: Some(reopen),
            ..Side::of(store)
        };
        history(&ops, side).await
    });
}

async fn history(ops: &[Op], mut other: Side) -> Result<(), TestCaseError> {
    let mut model = Side::of(Arc::new(ModelStore::new(1)));
    let mut now = Time::parse("2026-03-01T12:00:00Z").unwrap();
    for (number, op) in ops.iter().enumerate() {
        if let Op::Pass(seconds) = op {
            now = now.plus(Duration::from_secs((*seconds).into()));
        }
        let (expected, found) = (model.perform(op, now).await, other.perform(op, now).await);
        prop_assert_eq!(expected, found, "operation {}: {:?}", number, op);
        let (expected, found) = (model.picture(now).await, other.picture(now).await);
        for (what, expected) in &expected {
            prop_assert_eq!(
                Some(expected),
                found.get(what),
                "{} after operation {}: {:?}",
                what,
                number,
                op
            );
        }
    }
    for side in [&model, &other] {
        prop_assert_eq!(side.store.verify().await.unwrap().violations, Vec::<String>::new());
    }
    // A store that is dropped open would hold its files.
    let _ = other.store.close().await;
    Ok(())
}

#[test]
fn the_model_agrees_with_itself() {
    compare(30, || async { Arc::new(ModelStore::new(2)) as Arc<dyn Store> });
}
