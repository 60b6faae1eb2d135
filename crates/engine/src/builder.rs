//! How a node is put together.

use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use pensum_core::agent::Amounts;
use pensum_core::seam::Seams;
use pensum_core::store::Retention;
use pensum_core::task::Resources;
use pensum_core::{Name, NodeId, Store};

use crate::agents::Agents;
use crate::engine::{GRACE_DEFAULT, Inner, LEASE_DEFAULT, NodeInfo, SLOTS_DEFAULT};
use crate::hub::{EngineEvent, Hook, Hub};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::queues::Queues;
use crate::{Engine, Handler, bulk, handlers, system_seams};

/// What a node is built from.
pub struct EngineBuilder {
    store: Arc<dyn Store>,
    seams: Option<Seams>,
    name: Option<Name>,
    address: Option<String>,
    handlers: HashMap<Name, Arc<dyn Handler>>,
    capabilities: Vec<Name>,
    queues: Option<Vec<Name>>,
    slots: usize,
    resources: Option<Resources>,
    lease: Duration,
    grace: Duration,
    retention: Retention,
    allow_inline: bool,
    hooks: Vec<Hook>,
}

impl EngineBuilder {
    pub(crate) fn new(store: Arc<dyn Store>) -> EngineBuilder {
        EngineBuilder {
            store,
            seams: None,
            name: None,
            address: None,
            handlers: HashMap::default(),
            capabilities: Vec::new(),
            queues: None,
            slots: SLOTS_DEFAULT,
            resources: None,
            lease: LEASE_DEFAULT,
            grace: GRACE_DEFAULT,
            retention: Retention::default(),
            allow_inline: false,
            hooks: Vec::new(),
        }
    }

    /// Adds a handler; a second one of the same name replaces the first.
    #[must_use]
    pub fn handler(mut self, name: impl Into<Name>, handler: impl Handler) -> EngineBuilder {
        self.handlers.insert(name.into(), Arc::new(handler));
        self
    }

    /// Adds the built-in handlers: `command`, `http`, `sleep`, `log`, `noop` and `fail`.
    #[must_use]
    pub fn builtin_handlers(mut self) -> EngineBuilder {
        for (name, handler) in handlers::builtin() {
            self.handlers.entry(name).or_insert(handler);
        }
        self
    }

    /// Adds a capability beside the handlers' names, for tasks that require it.
    #[must_use]
    pub fn capability(mut self, name: impl Into<Name>) -> EngineBuilder {
        self.capabilities.push(name.into());
        self
    }

    /// Takes tasks from this queue, and from others only when they are named too; from every queue by default.
    #[must_use]
    pub fn queue(mut self, name: impl Into<Name>) -> EngineBuilder {
        self.queues.get_or_insert_default().push(name.into());
        self
    }

    /// How many tasks run at once, at least 1; [`SLOTS_DEFAULT`] by default.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> EngineBuilder {
        self.slots = slots.max(1);
        self
    }

    /// What the node's machine has for tasks: it never runs more at once than fits. By default it takes whatever they ask
    /// for.
    #[must_use]
    pub fn resources(mut self, resources: Resources) -> EngineBuilder {
        self.resources = Some(resources);
        self
    }

    /// The node's name, kept as `executor_id`; made of its id by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<Name>) -> EngineBuilder {
        self.name = Some(name.into());
        self
    }

    /// Where its HTTP API listens, such as `http://127.0.0.1:7400`, for whoever lists the nodes; nowhere by default.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> EngineBuilder {
        self.address = Some(address.into());
        self
    }

    /// How long a lease lasts without renewal, at least a second; [`LEASE_DEFAULT`] by default.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> EngineBuilder {
        self.lease = lease.max(Duration::from_secs(1));
        self
    }

    /// How long a handler has to return once it was asked to stop; [`GRACE_DEFAULT`] by default.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> EngineBuilder {
        self.grace = grace;
        self
    }

    /// Time, randomness and spawning; the real ones by default, but for the time of a store that has a clock of its own.
    #[must_use]
    pub fn seams(mut self, seams: Seams) -> EngineBuilder {
        self.seams = Some(seams);
        self
    }

    /// How long finished tasks are kept.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> EngineBuilder {
        self.retention = retention;
        self
    }

    /// Whether tasks that come through the [intake](pensum_core::intake) of the store may name `command` and `http`, which
    /// run whatever their parameters say; not by default, for whoever may insert there could run any command here.
    #[must_use]
    pub fn allow_inline(mut self, allow: bool) -> EngineBuilder {
        self.allow_inline = allow;
        self
    }

    /// Has a closure see every event of this node. It is called where the event happens: it must return at once.
    #[must_use]
    pub fn on_event(mut self, hook: impl Fn(&EngineEvent) + Send + Sync + 'static) -> EngineBuilder {
        self.hooks.push(Box::new(hook));
        self
    }

    /// The node, not yet [started](Engine::start).
    pub fn build(mut self) -> Engine {
        self.handlers.insert(Name::from(bulk::HANDLER), Arc::new(bulk::Bulk));
        let mut capabilities = self.capabilities;
        capabilities.extend(self.handlers.keys().cloned());
        capabilities.sort();
        capabilities.dedup();
        let seams = self.seams.unwrap_or_else(|| seams_of(&*self.store));
        let id = NodeId(seams.random.bits());
        let info = NodeInfo {
            id,
            name: self.name.unwrap_or_else(|| Name::from(id.to_string())),
            address: self.address,
            started_at: seams.now(),
            slots: self.slots,
        };
        let metrics = Metrics::new(self.handlers.keys().cloned(), info.started_at);
        let inner = Inner {
            store: self.store,
            seams,
            handlers: self.handlers,
            capabilities: capabilities.into(),
            queues: self
                .queues
                .map(|queues| queues.into_iter().chain([Name::from(bulk::HANDLER)]).collect()),
            offered: self.resources.as_ref().map(Amounts::of),
            lease: self.lease,
            grace: self.grace,
            retention: self.retention,
            allow_inline: self.allow_inline,
            seen_queues: Queues::default(),
            hub: Hub::new(self.hooks),
            node: Node::new(info.slots, info.started_at),
            info,
            metrics,
            agents: Agents::default(),
        };
        Engine::from(inner)
    }
}

/// The real seams. Leases on a store that several machines share are judged by its clock, so that is what counts.
fn seams_of(store: &dyn Store) -> Seams {
    let seams = system_seams();
    match store.clock() {
        Some(clock) => Seams { clock, ..seams },
        None => seams,
    }
}
