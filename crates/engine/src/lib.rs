//! The node of Pensum: claim loop, executor, leases and the built-in handlers.
//!
//! [`Engine`] has the verbs. What runs a task is a [`Handler`], which gets a [`Context`] and answers with an
//! [`Outcome`](pensum_core::Outcome). A task takes four hops: `enqueue` ([`Engine::enqueue`]) → claim (`claim.rs`) → run
//! (`executor.rs`) → finish (`completer.rs`). Beside them the keeper renews leases and watches the clocks of what runs
//! (`keeper.rs`), the reaper ends what is overdue (`reaper.rs`), and the node says that it lives (`heartbeat.rs`).

mod agents;
mod breakers;
mod builder;
mod bulk;
mod bulk_filter;
mod claim;
mod completer;
mod context;
mod dead_letters;
mod engine;
mod error;
mod executor;
mod explain;
mod handler;
pub mod handlers;
mod heartbeat;
mod hub;
mod intake;
mod keeper;
pub mod kinds;
mod manual;
mod metrics;
mod node;
mod performance;
pub mod process;
mod queues;
mod reaper;
mod run;
mod shutdown;
mod status;
mod system;

pub use agents::{
    Accepted, AcceptedStatus, AgentView, BeatInput, Given, Heard, HeartbeatInput, LogInput, PollInput, Polled,
    ProgressInput, ResultInput, UsageInput,
};
pub use breakers::BreakerView;
pub use builder::EngineBuilder;
pub use bulk::{BulkAction, BulkReceipt, BulkRequest};
pub use bulk_filter::BulkFilter;
pub use context::Context;
pub use dead_letters::{DeadLetterGroup, DeadLetterGroups, GROUP_NEWEST_MAX, GROUP_QUEUES_MAX, GROUPED_MAX};
pub use engine::{Engine, GRACE_DEFAULT, LEASE_DEFAULT, NodeInfo, Prepared, RESERVED_PREFIX, SLOTS_DEFAULT};
pub use error::EngineError;
pub use explain::{Explanation, Gate, GateKind};
pub use handler::Handler;
pub use hub::{EVENTS_BEHIND_MAX, EngineEvent, EventSummary};
pub use metrics::{DURATION_BUCKETS, HandlerMetrics, NodeMetrics};
pub use performance::{HandlerUsage, LimitModes, Performance, ResourceMetrics};
pub use queues::{QueueStatus, QueueView};
pub use run::{LOG_BYTES_MAX, LOG_LINE_BYTES_MAX, StopReason};
pub use shutdown::ShutdownReport;
pub use status::{AgentHealth, PerformanceMetrics, PersistenceStats, SystemStatus};
pub use system::{SystemClock, SystemRandom, TokioSpawn, system_seams};
