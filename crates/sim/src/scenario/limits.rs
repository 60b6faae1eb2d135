//! Queues that limit what they take, that order it in their own way, or whose tasks are not durable, in the worlds that have
//! such.

use std::time::Duration;

use pensum_core::queue::{QueueSettings, Rate, WhenFull};
use pensum_core::time::Span;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{Action, Draft, NodePlan, QueueOrder};

/// How many keys there are where many tasks have one.
const KEYS: u8 = 3;

/// Where it is crowded, everything comes so much sooner.
const SOONER: u64 = 4;

/// What a queue is to be like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuePlan {
    /// How many of its tasks run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// How many tasks may wait in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// How long its oldest ready task may have waited, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// At either of these it drops what has waited longest; it refuses what comes otherwise.
    #[serde(skip_serializing_if = "is_false")]
    pub drops: bool,
    /// How many of its tasks start within a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<RatePlan>,
    /// After how many milliseconds a ready task rises.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ageing_ms: Option<u64>,
    /// Keys take turns.
    #[serde(skip_serializing_if = "is_false")]
    pub fair: bool,
    /// Its tasks end with the process that accepts them.
    #[serde(skip_serializing_if = "is_false")]
    pub volatile: bool,
}

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RatePlan {
    /// So many units.
    pub starts: u32,
    /// Within so many milliseconds.
    pub per_ms: u64,
    /// So many at once after a quiet time.
    pub burst: u32,
}

pub(super) fn is_false(flag: &bool) -> bool {
    !*flag
}

impl QueuePlan {
    /// What the store is asked for.
    pub fn settings(self) -> QueueSettings {
        let span = |ms: u64| Span(Duration::from_millis(ms));
        QueueSettings {
            max_concurrent: self.max,
            max_depth: self.depth,
            max_age: self.max_age_ms.map(span),
            when_full: match self.drops {
                true => WhenFull::DropOldest,
                false => WhenFull::Refuse,
            },
            rate: self.rate.map(|rate| Rate {
                starts: rate.starts,
                per: span(rate.per_ms),
                burst: rate.burst,
            }),
            ageing: self.ageing_ms.map(span),
            fair: self.fair,
            persistent: !self.volatile,
            ..QueueSettings::default()
        }
    }
}

impl Draft {
    /// In some worlds queues limit what they take, or have an order of their own.
    pub(super) fn limits(&mut self, nodes: &mut [NodePlan]) {
        if self.random.random_bool(0.5) {
            return;
        }
        let (queues, many_keys) = (self.random.random_range(1..=2), self.random.random_bool(0.5));
        let crowded = self.random.random_bool(0.4);
        if crowded {
            for node in nodes {
                node.slots = 1;
            }
        }
        let random = &mut self.random;
        for step in &mut self.steps {
            let Action::Submit { tasks, .. } = &mut step.action else {
                continue;
            };
            if crowded {
                step.at_ms /= SOONER;
            }
            for task in tasks {
                if crowded {
                    task.priority /= 3;
                }
                if random.random_bool(0.8) {
                    task.queue = Some(random.random_range(0..queues));
                }
                task.units = random.random_bool(0.3).then(|| random.random_range(1..=5));
                task.rejects = random.random_bool(0.15);
                if many_keys && random.random_bool(0.7) {
                    task.key = Some(random.random_range(0..KEYS));
                }
            }
        }
        for queue in 0..queues {
            let mut plan = self.queue(crowded);
            for number in 0..self.random.random_range(1..=3) {
                // The first comes before most of the tasks; the others change a part of it.
                let at_ms = if number == 0 { self.at() / 20 } else { self.at() };
                if number > 0 {
                    plan = self.other(plan, crowded);
                }
                let (node, order) = (self.node(), QueueOrder::Put { plan });
                self.push(at_ms, Action::Queue { node, queue, order });
            }
        }
    }

    /// Where it is crowded, what is there waits for those who run it, more than for its queue.
    fn queue(&mut self, crowded: bool) -> QueuePlan {
        let random = &mut self.random;
        let (narrow, orders) = if crowded { (0.2, 0.6) } else { (0.6, 0.3) };
        QueuePlan {
            max: random.random_bool(narrow).then(|| random.random_range(1..=2)),
            depth: random.random_bool(narrow).then(|| random.random_range(1..=3)),
            max_age_ms: random.random_bool(0.35).then(|| random.random_range(300..5_000)),
            drops: random.random_bool(0.5),
            rate: random.random_bool(narrow / 2.0).then(|| RatePlan {
                starts: random.random_range(1..=4),
                per_ms: random.random_range(1_000..4_000),
                burst: random.random_range(1..=4),
            }),
            ageing_ms: random
                .random_bool(orders / 2.0)
                .then(|| random.random_range(1_000..4_000)),
            fair: random.random_bool(orders),
            volatile: random.random_bool(0.3),
        }
    }

    fn other(&mut self, plan: QueuePlan, crowded: bool) -> QueuePlan {
        let drawn = self.queue(crowded);
        match self.random.random_range(0..5) {
            0 => QueuePlan {
                max: drawn.max,
                rate: drawn.rate,
                ..plan
            },
            1 => QueuePlan {
                depth: drawn.depth,
                max_age_ms: drawn.max_age_ms,
                drops: drawn.drops,
                ..plan
            },
            2 => QueuePlan {
                ageing_ms: drawn.ageing_ms,
                fair: drawn.fair,
                ..plan
            },
            3 => QueuePlan {
                volatile: !plan.volatile,
                ..plan
            },
            _ => drawn,
        }
    }
}
