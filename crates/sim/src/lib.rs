//! A world that tries to break Pensum: the real engine on one to five simulated machines, over the model store or SQLite,
//! on a clock that jumps from one event to the next, with everything that is left to chance drawn from one seed.
//!
//! ```
//! use pensum_sim::{Scenario, Size, StoreKind};
//!
//! let scenario = Scenario::of(7, StoreKind::Model, Size::Small);
//! let outcome = pensum_sim::live(&scenario)?;
//! assert_eq!(pensum_sim::check(&scenario, &outcome), []);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod batch;
mod checker;
mod handlers;
mod history;
mod machine;
pub mod mutants;
mod remote;
mod scenario;
mod shrink;
mod story;
mod wire;
mod world;

pub use batch::{Batch, Tally, Verdict};
pub use checker::{Violation, check, check_from_outside};
pub use handlers::{ACT, COMMON, PAUSABLE, SIGNAL};
pub use history::{AgentName, Entry, Executor, Fault, Names, NodeName, Queued, Remote, Returned, Standing, What};
pub use remote::{agent_id, capabilities, skill_name};
pub use scenario::{
    Act, Action, AgentOrder, AgentPlan, BreakerOrder, DemandPlan, FaultPlan, NodePlan, OnFailure, Order, QueueOrder,
    QueuePlan, RatePlan, Scenario, Size, Step, StoreKind, TaskPlan,
};
pub use shrink::shrink;
pub use story::{fingerprint, story};
pub use world::{Final, Outcome, live, queue_name};
