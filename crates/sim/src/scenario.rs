//! What happens in a world: a plan that follows from a seed, and that a failing seed is cut down in.

mod limits;
mod remote;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

pub use limits::{QueuePlan, RatePlan};
pub use remote::{AgentOrder, AgentPlan, BreakerOrder, DemandPlan};

/// The store under the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// The model store.
    Model,
    /// SQLite in memory, on the thread of the simulation.
    Sqlite,
}

/// A whole plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Where it came from; also the source of all that is left to chance while it runs.
    pub seed: u64,
    /// What keeps the tasks.
    pub store: StoreKind,
    /// Nodes follow the clock of the store, as on PostgreSQL; otherwise each follows its own.
    pub shared_clock: bool,
    /// How long leases last, in milliseconds.
    pub lease_ms: u64,
    /// The nodes, by their number.
    pub nodes: Vec<NodePlan>,
    /// The agents, by their number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentPlan>,
    /// What goes wrong between nodes and store.
    pub faults: FaultPlan,
    /// What people, and the world, do; in the order of time.
    pub steps: Vec<Step>,
}

/// A machine on which one incarnation of a node follows the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// How many tasks run at once.
    pub slots: usize,
    /// How far its clock is behind, in milliseconds; each incarnation is behind by as much.
    pub behind_ms: u64,
    /// How long it takes to come back after its death.
    pub restart_ms: u64,
    /// How many cores it has for tasks; as many as they ask for without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
}

/// The share of calls to the store that go wrong, by how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultPlan {
    /// Nothing was done, and the caller is told so.
    pub error: f64,
    /// It was done, and the caller is told that the store is unavailable.
    pub lost_reply: f64,
    /// It takes a while, before or after it was done.
    pub delay: f64,
    /// It is done twice.
    pub duplicate: f64,
    /// A read answers what was true before.
    pub stale: f64,
    /// Only these calls go wrong, such as `n1 claim 3`, as found by cutting a plan down; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
}

/// Something that happens at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Milliseconds after the start.
    pub at_ms: u64,
    /// What.
    pub action: Action,
}

/// What people, and the world, do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A client submits a batch.
    Submit {
        /// To which node.
        node: usize,
        /// How long the client waits for the answer, in milliseconds; for ever without it.
        patience_ms: Option<u64>,
        /// What it submits.
        tasks: Vec<TaskPlan>,
    },
    /// A person commands something.
    Order {
        /// On which node.
        node: usize,
        /// The label of the task.
        task: u32,
        /// What.
        order: Order,
    },
    /// A person changes a queue.
    Queue {
        /// On which node.
        node: usize,
        /// Which queue.
        queue: u8,
        /// What.
        order: QueueOrder,
    },
    /// Something befalls an agent.
    Agent {
        /// On which node, where a person asks for it.
        node: usize,
        /// Which agent.
        agent: usize,
        /// What.
        order: AgentOrder,
    },
    /// A person changes a breaker.
    Breaker {
        /// On which node.
        node: usize,
        /// Which breaker.
        breaker: u8,
        /// What.
        order: BreakerOrder,
    },
    /// The process of a node ends without a word.
    Kill {
        /// Which node.
        node: usize,
    },
    /// The process of a node stands still.
    Freeze {
        /// Which node.
        node: usize,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// A node is asked to stop, and comes back: a deploy.
    Restart {
        /// Which node.
        node: usize,
    },
    /// The store answers nobody.
    StoreAway {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
}

/// What a person may ask of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Stop it.
    Cancel,
    /// Hold it back.
    Pause,
    /// Let it go on.
    Resume,
    /// Run it again.
    Retry,
    /// Run it now.
    RunNow,
    /// Give it the signal that it may wait for.
    Signal,
    /// Remove it.
    Delete,
    /// Change its priority.
    Promote,
}

/// What a person may ask of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueOrder {
    /// So many of its tasks run at once, and no more.
    Width {
        /// How many.
        max: u32,
    },
    /// As many run as may.
    Open,
    /// It is to be like this.
    Put {
        /// What it allows.
        plan: QueuePlan,
    },
    /// Start nothing of it.
    Pause,
    /// Start its tasks again.
    Resume,
}

/// A task to submit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskPlan {
    /// Its number in the plan: what it is called before it has an id.
    pub label: u32,
    /// What its handler does.
    pub act: Act,
    /// 0 to 3, low to critical.
    pub priority: u8,
    /// How many failures are followed by another attempt.
    pub retries: u32,
    /// Not before this many milliseconds after its submission.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_ms: u64,
    /// Its queue; the one that nobody changes without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u8>,
    /// Tasks of one key run one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u8>,
    /// One unfinished task of a unique key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<u8>,
    /// Labels of tasks that must end first. Those of the same batch come before it there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<u32>,
    /// What a failed dependency does.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Longest attempt, in milliseconds.
    pub timeout_ms: u64,
    /// Not started by then, in milliseconds after its submission: cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Ready for longer: failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    /// What it demands of whoever runs it; without it, it is for nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<DemandPlan>,
    /// How many units of its queue's rate a start takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<u32>,
    /// It is not to wait where its queue is at a limit.
    #[serde(default, skip_serializing_if = "limits::is_false")]
    pub rejects: bool,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The dependency policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is cancelled too.
    #[default]
    Cancel,
    /// The failed dependency counts as met.
    Ignore,
    /// It runs once all have ended.
    Run,
}

/// What a handler does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Works for a while, and is done.
    Work {
        /// For how long.
        ms: u64,
    },
    /// Fails in its first attempts.
    Fail {
        /// In how many.
        attempts: u32,
        /// After how long.
        ms: u64,
    },
    /// Fails for good.
    FailForGood,
    /// Panics in its first attempts.
    Panic {
        /// In how many.
        attempts: u32,
    },
    /// Never returns by itself.
    Hang,
    /// Does not heed that it is to stop.
    Stubborn {
        /// For how long.
        ms: u64,
    },
    /// Durable steps, one after the other, with progress and log lines between.
    Steps {
        /// How many.
        count: u32,
        /// How long each takes.
        ms: u64,
    },
    /// Counts in its checkpoint, and asks to be run again.
    Again {
        /// How often.
        times: u32,
    },
    /// Spawns children and waits for them.
    Children {
        /// How many.
        count: u32,
        /// Saves before it waits, so that the children come with the save.
        saves: bool,
    },
    /// Waits for a signal, or for its time to be up.
    AwaitSignal {
        /// For how long.
        ms: u64,
    },
    /// Works, and stands still while it is paused.
    Pausable {
        /// For how long.
        ms: u64,
    },
    /// Ends the process of its node, in its first runs.
    Deadly {
        /// In how many.
        runs: u32,
    },
}

/// How large a world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// Some ten tasks on up to three nodes.
    Small,
    /// Some forty tasks on up to five nodes.
    Large,
}

/// The latest step of a plan, in milliseconds.
const LIVELY_MS: u64 = 25_000;

impl Scenario {
    /// The plan of a seed.
    pub fn of(seed: u64, store: StoreKind, size: Size) -> Scenario {
        let mut random = StdRng::seed_from_u64(seed);
        let (most_nodes, most_tasks) = match size {
            Size::Small => (3, 12),
            Size::Large => (5, 40),
        };
        let shared_clock = random.random_bool(0.5);
        let lease_ms = *[2_000, 5_000, 10_000].choose(&mut random).unwrap_or(&5_000);
        let mut nodes: Vec<NodePlan> = (0..random.random_range(1..=most_nodes))
            .map(|_| NodePlan {
                slots: random.random_range(1..=4),
                behind_ms: match shared_clock || random.random_bool(0.6) {
                    true => 0,
                    false => random.random_range(0..=lease_ms * 2),
                },
                restart_ms: random.random_range(200..=8_000),
                cores: None,
            })
            .collect();
        let faults = FaultPlan {
            error: share(&mut random, 0.08),
            lost_reply: share(&mut random, 0.08),
            delay: share(&mut random, 0.15),
            duplicate: share(&mut random, 0.05),
            stale: share(&mut random, 0.10),
            only: None,
        };
        let mut draft = Draft {
            tasks: random.random_range(3..=most_tasks),
            unique: random.random_bool(0.4),
            random,
            nodes: nodes.len(),
            lease_ms,
            labels: 0,
            steps: Vec::new(),
        };
        draft.submissions();
        draft.orders();
        draft.queues();
        draft.accidents();
        let agents = draft.agents(&mut nodes);
        draft.breakers();
        draft.limits(&mut nodes);
        draft.steps.sort_by_key(|step| step.at_ms);
        Scenario {
            seed,
            store,
            // Nodes that agents choose among have a store with a clock, for leases are renewed at one or the other.
            shared_clock: shared_clock || !agents.is_empty(),
            lease_ms,
            nodes,
            agents,
            faults,
            steps: draft.steps,
        }
    }

    /// True when somebody makes a breaker.
    pub(crate) fn has_breakers(&self) -> bool {
        let is_put = |step: &Step| matches!(step.action, Action::Breaker { .. });
        self.steps.iter().any(is_put)
    }

    /// True when queues get more than a width.
    pub(crate) fn has_limits(&self) -> bool {
        let is_put = |step: &Step| {
            let Action::Queue { order, .. } = step.action else {
                return false;
            };
            matches!(order, QueueOrder::Put { .. })
        };
        self.steps.iter().any(is_put)
    }

    /// Every task of the plan.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskPlan> {
        self.steps.iter().flat_map(|step| match &step.action {
            Action::Submit { tasks, .. } => tasks.as_slice(),
            _ => &[],
        })
    }
}

/// Half of the worlds know a kind of fault, each to a degree of its own.
fn share(random: &mut StdRng, most: f64) -> f64 {
    if random.random_bool(0.5) {
        0.0
    } else {
        random.random_range(0.0..most)
    }
}

/// A plan in the making.
struct Draft {
    random: StdRng,
    nodes: usize,
    tasks: u32,
    unique: bool,
    lease_ms: u64,
    labels: u32,
    steps: Vec<Step>,
}

impl Draft {
    fn node(&mut self) -> usize {
        self.random.random_range(0..self.nodes)
    }

    fn at(&mut self) -> u64 {
        self.random.random_range(0..LIVELY_MS)
    }

    fn push(&mut self, at_ms: u64, action: Action) {
        self.steps.push(Step { at_ms, action });
    }

    fn submissions(&mut self) {
        let mut at_ms = 0;
        while self.labels < self.tasks {
            at_ms = (at_ms + self.random.random_range(0..4_000)).min(LIVELY_MS);
            let count = if self.random.random_bool(0.7) {
                1
            } else {
                self.random.random_range(2..=5)
            };
            let first = self.labels;
            let tasks = (0..count).map(|_| self.task(first)).collect();
            let action = Action::Submit {
                node: self.node(),
                patience_ms: self.random.random_bool(0.2).then(|| self.random.random_range(0..2_000)),
                tasks,
            };
            self.push(at_ms, action);
        }
    }

    fn task(&mut self, first_of_batch: u32) -> TaskPlan {
        let label = self.labels;
        self.labels += 1;
        let act = self.act();
        let random = &mut self.random;
        let retries = match &act {
            // Enough for every write that an outage cuts short.
            Act::Steps { .. } | Act::Children { .. } | Act::AwaitSignal { .. } => 60,
            Act::Fail { attempts, .. } | Act::Panic { attempts } if *attempts < 10 => {
                attempts + random.random_range(0..2)
            }
            _ => random.random_range(0..3),
        };
        let mut depends_on = Vec::new();
        if label > 0 && random.random_bool(0.25) {
            for _ in 0..random.random_range(1..=2) {
                let on = if first_of_batch < label && random.random_bool(0.5) {
                    random.random_range(first_of_batch..label)
                } else {
                    random.random_range(0..label)
                };
                if !depends_on.contains(&on) {
                    depends_on.push(on);
                }
            }
        }
        let on_failure = *[OnFailure::Cancel, OnFailure::Ignore, OnFailure::Run]
            .choose(random)
            .unwrap_or(&OnFailure::Cancel);
        TaskPlan {
            label,
            act,
            priority: random.random_range(0..4),
            queue: None,
            retries,
            delay_ms: if random.random_bool(0.15) {
                random.random_range(1..10_000)
            } else {
                0
            },
            key: random.random_bool(0.3).then(|| random.random_range(0..2)),
            unique: (self.unique && random.random_bool(0.4)).then(|| random.random_range(0..2)),
            depends_on,
            on_failure,
            timeout_ms: random.random_range(8_000..20_000),
            expires_ms: random.random_bool(0.08).then(|| random.random_range(100..15_000)),
            queue_timeout_ms: random.random_bool(0.08).then(|| random.random_range(100..15_000)),
            demand: None,
            units: None,
            rejects: false,
        }
    }

    fn act(&mut self) -> Act {
        let random = &mut self.random;
        let lease_ms = self.lease_ms;
        match random.random_range(0..100) {
            0..25 => Act::Work {
                ms: random.random_range(0..3_000),
            },
            // Runs longer than its lease.
            25..33 => Act::Work {
                ms: random.random_range(lease_ms..lease_ms + 5_000).min(7_500),
            },
            33..43 => Act::Fail {
                attempts: if random.random_bool(0.3) {
                    99
                } else {
                    random.random_range(1..4)
                },
                ms: random.random_range(0..500),
            },
            43..46 => Act::FailForGood,
            46..50 => Act::Panic {
                attempts: random.random_range(1..3),
            },
            50..54 => Act::Hang,
            54..58 => Act::Stubborn {
                ms: random.random_range(1_000..7_000),
            },
            58..68 => Act::Steps {
                count: random.random_range(1..4),
                ms: random.random_range(0..1_500),
            },
            68..75 => Act::Again {
                times: random.random_range(1..4),
            },
            75..83 => Act::Children {
                count: random.random_range(1..4),
                saves: random.random_bool(0.3),
            },
            83..90 => Act::AwaitSignal {
                ms: random.random_range(500..12_000),
            },
            90..96 => Act::Pausable {
                ms: random.random_range(500..5_000),
            },
            _ => Act::Deadly {
                runs: if random.random_bool(0.3) {
                    99
                } else {
                    random.random_range(1..3)
                },
            },
        }
    }

    fn orders(&mut self) {
        let orders = [
            Order::Cancel,
            Order::Cancel,
            Order::Pause,
            Order::Pause,
            Order::Resume,
            Order::Resume,
            Order::Retry,
            Order::RunNow,
            Order::Signal,
            Order::Signal,
            Order::Delete,
            Order::Promote,
        ];
        for _ in 0..self.random.random_range(0..=self.tasks) {
            let (at_ms, node) = (self.at(), self.node());
            let task = self.random.random_range(0..self.labels);
            let order = *orders.choose(&mut self.random).unwrap_or(&Order::Cancel);
            self.push(at_ms, Action::Order { node, task, order });
        }
    }

    /// In some worlds there are two queues that people change, and many tasks wait in them.
    fn queues(&mut self) {
        if self.random.random_bool(0.6) {
            return;
        }
        for step in &mut self.steps {
            if let Action::Submit { tasks, .. } = &mut step.action {
                for task in tasks {
                    task.queue = self.random.random_bool(0.6).then(|| self.random.random_range(0..2));
                }
            }
        }
        for queue in 0..2 {
            for number in 0..self.random.random_range(0..=4) {
                // The first change comes before most of the tasks.
                let at_ms = if number == 0 { self.at() / 20 } else { self.at() };
                let order = match self.random.random_range(0..10) {
                    0..5 => QueueOrder::Width {
                        max: self.random.random_range(1..=3),
                    },
                    5 => QueueOrder::Open,
                    6 | 7 => QueueOrder::Pause,
                    _ => QueueOrder::Resume,
                };
                let node = self.node();
                self.push(at_ms, Action::Queue { node, queue, order });
            }
        }
    }

    fn accidents(&mut self) {
        for _ in 0..self.random.random_range(0..=4) {
            let (at_ms, node) = (self.at(), self.node());
            let action = match self.random.random_range(0..10) {
                0..4 => Action::Kill { node },
                4..7 => Action::Freeze {
                    node,
                    for_ms: self.random.random_range(500..self.lease_ms * 3),
                },
                7..9 => Action::Restart { node },
                _ => Action::StoreAway {
                    for_ms: self.random.random_range(200..self.lease_ms * 2),
                },
            };
            self.push(at_ms, action);
        }
    }
}
