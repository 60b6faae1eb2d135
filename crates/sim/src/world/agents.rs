//! The agents of a world, and what people ask of them and of breakers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::Name;
use pensum_core::agent::AgentCommand;
use pensum_core::breaker::{BreakerCommand, BreakerSettings};
use pensum_core::store::Call;
use pensum_core::time::Span;
use tokio::sync::Notify;

use super::{PATIENCE, World};
use crate::handlers::{ACT, COMMON, PAUSABLE};
use crate::history::{AgentName, Remote, What};
use crate::remote::{Agent, agent_id, registration};
use crate::scenario::{AgentOrder, BreakerOrder};

/// How far back a breaker counts: longer than any world lives.
const WINDOW: Duration = Duration::from_secs(24 * 3_600);

/// Where one process of an agent follows the other.
#[derive(Default)]
pub(super) struct Seat {
    /// Those that were started, of which older ones may go on.
    lives: Mutex<Vec<Arc<Agent>>>,
    replace: Notify,
}

impl Seat {
    fn newest(&self) -> Option<Arc<Agent>> {
        self.lives.lock().last().cloned()
    }
}

impl World {
    /// One process of an agent after the other, until the world is over.
    pub(super) async fn supervise_agent(self: Arc<World>, agent: usize) {
        let seat = &self.seats[agent];
        for life in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let process = Agent::new(Arc::clone(&self), AgentName { agent, life });
            seat.lives.lock().push(Arc::clone(&process));
            tokio::select! {
                biased;
                _ = tokio::spawn(process.live()) => {
                    tokio::time::sleep(Duration::from_millis(self.scenario.agents[agent].restart_ms)).await;
                }
                // The one before goes on.
                () = seat.replace.notified() => {}
            }
        }
    }

    /// What befalls an agent.
    pub(super) async fn befall(&self, node: usize, agent: usize, order: AgentOrder) {
        let Some(seat) = self.seats.get(agent) else { return };
        let Some(process) = seat.newest() else { return };
        let told = |what: Remote| self.history.add(What::Remote(what));
        match order {
            AgentOrder::Kill => drop(process.machine.kill()),
            AgentOrder::Freeze { for_ms } => {
                if process.machine.freeze() {
                    let by = Duration::from_millis(for_ms);
                    told(Remote::Freezes(process.name, by));
                    tokio::time::sleep(by).await;
                    if process.machine.thaw() {
                        told(Remote::Thaws(process.name));
                    }
                }
            }
            AgentOrder::Replace => seat.replace.notify_one(),
            AgentOrder::Leave => process.leave.notify_one(),
            AgentOrder::Drain | AgentOrder::Undrain | AgentOrder::Shrink | AgentOrder::Restore | AgentOrder::Remove => {
                self.change_agent(node, agent, order).await;
            }
        }
    }

    /// Somebody changes an agent, and does not try again.
    async fn change_agent(&self, node: usize, agent: usize, order: AgentOrder) {
        let Some(found) = self.reach(node).await else { return };
        let call = Call::new("somebody", found.engine.now());
        let mut plan = self.scenario.agents[agent].clone();
        if order == AgentOrder::Shrink {
            (plan.slots, plan.cores) = (1, 1);
        }
        let engine = found.engine.clone();
        let id = agent_id(agent);
        let change = async {
            match order {
                AgentOrder::Drain => engine.command_agent(&call, &id, AgentCommand::Drain).await.map(drop),
                AgentOrder::Undrain => engine.command_agent(&call, &id, AgentCommand::Undrain).await.map(drop),
                AgentOrder::Remove => engine.remove_agent(&call, &id).await,
                _ => engine.register_agent(&call, registration(agent, &plan)).await.map(drop),
            }
        };
        // What became of it shows in what the store carries out.
        let _ = tokio::time::timeout(PATIENCE, found.machine.run(change)).await;
    }

    /// Somebody changes a breaker, and does not try again.
    pub(super) async fn change_breaker(&self, node: usize, breaker: u8, order: BreakerOrder) {
        let Some(found) = self.reach(node).await else { return };
        let call = Call::new("somebody", found.engine.now());
        let store = found.engine.store();
        let name = Name::from(format!("breaker-{breaker}"));
        let handlers: &[&str] = match breaker {
            0 => &[ACT, PAUSABLE],
            1 => &[COMMON],
            _ => &[],
        };
        let change = async {
            match order {
                BreakerOrder::Put {
                    failures,
                    open_ms,
                    probes,
                } => {
                    let settings = BreakerSettings {
                        handlers: handlers.iter().map(|handler| Name::from(*handler)).collect(),
                        agents: match handlers {
                            [] => vec![Name::from(agent_id(0))],
                            _ => Vec::new(),
                        },
                        failures: Some(failures),
                        window: Span(WINDOW),
                        open_for: Span(Duration::from_millis(open_ms)),
                        probes,
                        ..BreakerSettings::default()
                    };
                    store.put_breaker(&call, name, settings, None).await.map(drop)
                }
                BreakerOrder::Trip => store.command_breaker(&call, name, BreakerCommand::Trip).await.map(drop),
                BreakerOrder::Reset => store
                    .command_breaker(&call, name, BreakerCommand::Reset)
                    .await
                    .map(drop),
                BreakerOrder::Delete => store.delete_breaker(&call, name).await,
            }
        };
        // What became of it shows in what the store carries out.
        let _ = tokio::time::timeout(PATIENCE, found.machine.run(change)).await;
    }

    pub(super) fn thaw_agents(&self) {
        for seat in &self.seats {
            for process in seat.lives.lock().iter() {
                if process.machine.thaw() {
                    self.history.add(What::Remote(Remote::Thaws(process.name)));
                }
            }
        }
    }

    /// Every agent is again as it was planned, and may have work.
    pub(super) async fn restore_agents(&self) {
        if self.seats.is_empty() {
            return;
        }
        // Whatever is wrong with the store shows in what gets stuck.
        for record in self.store.agents("default").await.unwrap_or_default() {
            let Some(agent) = (0..self.seats.len()).find(|agent| *agent_id(*agent) == *record.name) else {
                continue;
            };
            let call = Call::new("the healer", self.now());
            let (verb, changed) = match registration(agent, &self.scenario.agents[agent]).resolve() {
                Ok((name, settings)) if settings != record.settings => {
                    ("put", self.store.put_agent(&call, name, settings).await)
                }
                Ok((name, _)) if record.draining_at.is_some() => {
                    let undrain = self.store.command_agent(&call, name, AgentCommand::Undrain);
                    ("undrain", undrain.await)
                }
                _ => continue,
            };
            if let Ok(changed) = changed {
                self.history.add(What::Remote(Remote::Changed {
                    agent: changed.name.to_string(),
                    verb,
                    record: Some(Box::new(changed)),
                }));
            }
        }
    }

    /// All agents end.
    pub(super) fn dismiss_agents(&self) {
        self.over.store(true, Ordering::SeqCst);
        for seat in &self.seats {
            for process in seat.lives.lock().iter() {
                process.machine.kill();
            }
        }
    }
}
