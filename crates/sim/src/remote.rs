//! Agents: processes on machines of their own that ask the nodes for work as remote programs do. Some of them are sloppy:
//! they are late, repeat themselves, keep silent, and bring results that are not theirs.

mod runs;
mod send;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::input::AgentInput;
use pensum_core::task::Resources;
use pensum_core::time::Span;
use pensum_core::{ExecutionId, LeaseId, NodeId, Rejected};
use pensum_engine::{AcceptedStatus, BeatInput, EngineError, Given, HeartbeatInput, PollInput, ResultInput};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::handlers::{COMMON, Stage};
use crate::history::{AgentName, Executor, Remote as Told, What};
use crate::machine::Machine;
use crate::scenario::AgentPlan;
use crate::wire::{Draws, fold};
use crate::world::World;

/// How long an agent waits before it asks again.
const RECONNECT: Duration = Duration::from_millis(300);
/// A share of its lease: how often an agent says that it lives.
const BEATS_PER_LEASE: u32 = 3;

/// What somebody wants of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Nothing,
    Cancel,
    Pause,
    Lost,
}

struct Running {
    token: String,
    ask: watch::Sender<Ask>,
}

/// A result to bring.
struct Due {
    result: ResultInput,
    from: Instant,
    /// It is another agent's.
    foreign: bool,
    /// It was answered before, and is brought once more.
    again: bool,
}

#[derive(Default)]
struct Hands {
    runs: BTreeMap<String, Running>,
    due: Vec<Due>,
}

/// Why a process of an agent ends by itself.
enum End {
    /// Another one has taken over.
    Fenced,
    /// It was asked to.
    Left,
}

/// One process of an agent.
pub(crate) struct Agent {
    world: Arc<World>,
    stage: Arc<Stage>,
    plan: AgentPlan,
    id: String,
    pub(crate) name: AgentName,
    session: String,
    pub(crate) machine: Arc<Machine>,
    hands: Mutex<Hands>,
    draws: Mutex<Draws>,
    news: Notify,
    pub(crate) leave: Notify,
}

/// The id of an agent of a plan.
pub fn agent_id(agent: usize) -> String {
    format!("agent-{}", agent + 1)
}

/// What an agent of a plan can do.
pub fn skill_name(skill: u8) -> String {
    format!("skill-{skill}")
}

/// Cores, as somebody would ask for them.
pub(crate) fn cores(cores: u32) -> Resources {
    Resources {
        cpu_cores: (cores > 0).then(|| f64::from(cores)),
        ..Resources::default()
    }
}

/// What an agent of a plan says that it can do.
pub fn capabilities(plan: &AgentPlan) -> Vec<String> {
    let skills = plan.skills.iter().map(|skill| skill_name(*skill));
    skills.chain(plan.common.then(|| COMMON.to_owned())).collect()
}

/// What an agent says of itself.
pub(crate) fn registration(agent: usize, plan: &AgentPlan) -> AgentInput {
    AgentInput {
        id: agent_id(agent),
        capabilities: capabilities(plan),
        max_concurrent_tasks: Some(plan.slots),
        resources: Some(cores(plan.cores)),
        lease: Some(Span(Duration::from_millis(plan.lease_ms))),
        ..AgentInput::default()
    }
}

impl Agent {
    pub(crate) fn new(world: Arc<World>, name: AgentName) -> Arc<Agent> {
        let plan = world.scenario.agents[name.agent].clone();
        let seed = world.scenario.seed ^ fold(&name.to_string());
        Arc::new(Agent {
            stage: Arc::clone(&world.stage),
            world,
            plan,
            id: agent_id(name.agent),
            session: format!("life {}", name.life),
            name,
            machine: Machine::new(),
            hands: Mutex::default(),
            draws: Mutex::new(Draws(seed)),
            news: Notify::new(),
            leave: Notify::new(),
        })
    }

    fn told(&self, what: Told) {
        self.world.history.add(What::Remote(what));
    }

    /// True for a share of what a sloppy agent does, as long as things go wrong.
    fn slips(&self) -> bool {
        let draw = self.draws.lock().unit();
        draw < self.plan.sloppy && !self.world.weather.is_fair()
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(self.plan.lease_ms)
    }

    /// The life of the process.
    pub(crate) async fn live(self: Arc<Agent>) {
        self.told(Told::Starts(self.name));
        let life = async {
            self.register().await;
            let (polls, beats) = (self.polls(), self.beats());
            tokio::select! {
                biased;
                () = self.leave.notified() => {
                    self.say_goodbye().await;
                    End::Left
                }
                end = polls => end,
                end = beats => end,
            }
        };
        let end = self.machine.run(life).await;
        self.machine.kill();
        self.told(Told::Ends(
            self.name,
            match end {
                None => "DIES",
                Some(End::Fenced) => "ends: another one has taken over",
                Some(End::Left) => "leaves in good order",
            },
        ));
    }

    async fn register(&self) {
        loop {
            let input = registration(self.name.agent, &self.plan);
            let sent = self.send("register", move |engine, call, _| {
                let input = input.clone();
                async move { engine.register_agent(&call, input).await }
            });
            match sent.await {
                Some(Ok(_)) => return,
                Some(Err(error)) => self.complain(&error),
                None => {}
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn say_goodbye(&self) {
        let (id, session) = (self.id.clone(), self.session.clone());
        let sent = self.send("leave", move |engine, call, _| {
            let (id, session) = (id.clone(), session.clone());
            async move { engine.leave_agent(&call, &id, &session).await }
        });
        // Whoever does not hear of it lets the leases run out.
        let _ = sent.await;
    }

    /// What an agent cannot help is told to nobody; that it is wrong, to the judge.
    fn complain(&self, error: &EngineError) {
        if let EngineError::Invalid(why) = error {
            self.told(Told::Misunderstood(self.name, why.to_string()));
        }
    }

    /// What to do about an error; `Some` when the process is to end.
    async fn cope(&self, error: EngineError) -> Option<End> {
        self.complain(&error);
        match error {
            EngineError::Rejected(Rejected::SessionFenced(_)) => return Some(End::Fenced),
            EngineError::Rejected(Rejected::NoAgent(_)) => self.register().await,
            _ => tokio::time::sleep(RECONNECT).await,
        }
        None
    }

    /// Polls again and again.
    async fn polls(self: &Arc<Agent>) -> End {
        loop {
            let (input, foreign, again) = self.next_poll();
            let is_idle = input.results.is_empty() && self.hands.lock().runs.len() >= self.plan.slots as usize;
            if is_idle {
                tokio::select! {
                    biased;
                    () = self.news.notified() => {}
                    () = tokio::time::sleep(self.lease() / 2) => {}
                }
                continue;
            }
            let results = input.results.clone();
            let id = self.id.clone();
            let sent = self.send("poll", move |engine, call, over| {
                let (id, input) = (id.clone(), input.clone());
                async move { engine.poll_agent(&call, &id, input, &over).await }
            });
            let answer = tokio::select! {
                biased;
                answer = sent => answer,
                // What it would be given now is given with the next poll.
                () = self.news.notified() => continue,
            };
            match answer {
                Some(Ok(polled)) => {
                    for ((result, answer), foreign) in results.iter().zip(&polled.accepted).zip(&foreign) {
                        self.answered(result, answer.status, *foreign);
                    }
                    for execution in again {
                        self.hands
                            .lock()
                            .due
                            .retain(|due| !due.again || due.result.execution_id != execution);
                    }
                    for given in polled.tasks {
                        self.start(given);
                    }
                    // Whoever gets nothing although it does not wait asks a little later.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Some(Err(error)) => {
                    if let Some(end) = self.cope(error).await {
                        return end;
                    }
                }
                None => tokio::time::sleep(RECONNECT).await,
            }
        }
    }

    /// What to poll with; which of its results are another agent's; and which are brought again.
    fn next_poll(&self) -> (PollInput, Vec<bool>, Vec<String>) {
        let mut hands = self.hands.lock();
        let now = Instant::now();
        let is_due = |due: &&Due| due.from <= now || self.world.weather.is_fair();
        let results: Vec<ResultInput> = hands.due.iter().filter(is_due).map(|due| due.result.clone()).collect();
        let foreign = hands.due.iter().filter(is_due).map(|due| due.foreign).collect();
        let again = hands.due.iter().filter(is_due).filter(|due| due.again);
        let again = again.map(|due| due.result.execution_id.clone()).collect();
        // A foreign one is brought once.
        hands.due.retain(|due| !(due.foreign && is_due(&due)));
        let own = hands.due.iter().filter(|due| !due.foreign && !due.again);
        let mut have: Vec<String> = own.map(|due| due.result.execution_id.clone()).collect();
        have.extend(hands.runs.keys().cloned());
        let free = (self.plan.slots as usize).saturating_sub(hands.runs.len());
        let waits = self.draws.lock().next() % 2_000;
        let input = PollInput {
            session: self.session.clone(),
            max: free.max(1),
            wait_ms: if free > 0 { waits } else { 0 },
            have,
            results,
        };
        (input, foreign, again)
    }

    /// An answer to a result has come.
    fn answered(&self, result: &ResultInput, status: AcceptedStatus, foreign: bool) {
        let Some((lease, execution)) =
            lease_of(&result.lease_token).zip(result.execution_id.parse::<ExecutionId>().ok())
        else {
            return;
        };
        self.told(Told::Answered {
            agent: self.name,
            task: execution.task,
            lease: lease.0,
            status: match status {
                AcceptedStatus::Accepted => "accepted",
                AcceptedStatus::Repeat => "repeat",
                AcceptedStatus::LeaseLost => "lease lost",
                AcceptedStatus::Invalid => "invalid",
            },
            foreign,
        });
        if foreign {
            return;
        }
        let repeats = self.slips();
        let mut hands = self.hands.lock();
        hands
            .due
            .retain(|due| due.again || due.result.lease_token != result.lease_token);
        if repeats {
            hands.due.push(Due {
                result: result.clone(),
                from: Instant::now() + self.lease(),
                foreign: false,
                again: true,
            });
        }
    }

    /// A task was given, or given again.
    fn start(self: &Arc<Agent>, given: Given) {
        let mut hands = self.hands.lock();
        let is_known = |token: &String| *token == given.lease_token;
        let known = hands.runs.get(&given.execution_id).map(|run| &run.token);
        let brought = hands
            .due
            .iter()
            .filter(|due| !due.foreign)
            .map(|due| &due.result.lease_token);
        if known.into_iter().chain(brought).any(is_known) {
            return;
        }
        let (ask, asked) = watch::channel(Ask::Nothing);
        let running = Running {
            token: given.lease_token.clone(),
            ask,
        };
        if let Some(before) = hands.runs.insert(given.execution_id.clone(), running) {
            before.ask.send_replace(Ask::Lost);
        }
        drop(hands);
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            let machine = Arc::clone(&agent.machine);
            machine.run(agent.run(given, asked)).await;
        });
    }

    /// A run has ended: its result is brought with the next poll, or later.
    fn ended(&self, execution: &str, token: &str, outcome: pensum_core::Json) {
        let late = match self.slips() {
            true => self.lease() * 2,
            false => Duration::ZERO,
        };
        let stray = self.slips();
        let mut hands = self.hands.lock();
        if hands.runs.get(execution).is_none_or(|run| run.token != token) {
            return;
        }
        hands.runs.remove(execution);
        let result = ResultInput {
            execution_id: execution.to_owned(),
            lease_token: token.to_owned(),
            outcome,
            usage: None,
            logs: Vec::new(),
            progress: None,
        };
        let mut others = self.world.results.lock();
        if stray && let Some((_, result)) = others.iter().rfind(|(agent, _)| *agent != self.name.agent) {
            hands.due.push(Due {
                result: result.clone(),
                from: Instant::now(),
                foreign: true,
                again: false,
            });
        }
        others.push((self.name.agent, result.clone()));
        hands.due.push(Due {
            result,
            from: Instant::now() + late,
            foreign: false,
            again: false,
        });
        drop((hands, others));
        self.news.notify_one();
    }

    /// Says that it lives, again and again.
    async fn beats(&self) -> End {
        loop {
            tokio::time::sleep(self.lease() / BEATS_PER_LEASE).await;
            if self.slips() {
                continue;
            }
            let executions = {
                let hands = self.hands.lock();
                let beat = |(execution, token): (&String, &String)| BeatInput {
                    execution_id: execution.clone(),
                    lease_token: token.clone(),
                    progress: None,
                    usage: None,
                    logs: Vec::new(),
                    checkpoint: None,
                };
                let runs = hands.runs.iter().map(|(execution, run)| (execution, &run.token));
                let own = hands.due.iter().filter(|due| !due.foreign && !due.again);
                let own = own.map(|due| (&due.result.execution_id, &due.result.lease_token));
                let mut beats: Vec<BeatInput> = runs.chain(own).map(beat).collect();
                // One of them may have been given anew under another lease.
                beats.dedup_by(|one, other| one.execution_id == other.execution_id);
                let mut named = std::collections::BTreeSet::new();
                beats.retain(|beat| named.insert(beat.execution_id.clone()));
                beats
            };
            if let Err(error) = self.beat(executions).await
                && let Some(end) = self.cope(error).await
            {
                return end;
            }
        }
    }

    /// One heartbeat; true when it was answered, and nothing that it names is lost.
    async fn beat(&self, executions: Vec<BeatInput>) -> Result<bool, EngineError> {
        let tokens: Vec<(String, String)> = executions
            .iter()
            .map(|beat| (beat.execution_id.clone(), beat.lease_token.clone()))
            .collect();
        let (id, session) = (self.id.clone(), self.session.clone());
        let sent = self.send("beat", move |engine, call, _| {
            let (id, session, executions) = (id.clone(), Some(session.clone()), executions.clone());
            async move {
                let input = HeartbeatInput { session, executions };
                engine.heartbeat_agent(&call, &id, input).await
            }
        });
        let Some(answer) = sent.await else { return Ok(false) };
        let heard = answer?;
        let ask = |executions: &[String], ask: Ask| {
            let hands = self.hands.lock();
            for (execution, token) in tokens.iter().filter(|(execution, _)| executions.contains(execution)) {
                if let Some(run) = hands.runs.get(execution).filter(|run| run.token == *token) {
                    run.ask.send_replace(ask);
                }
            }
        };
        ask(&heard.pause, Ask::Pause);
        ask(&heard.cancel, Ask::Cancel);
        // Some bring a result all the same.
        if !self.slips() {
            ask(&heard.lost, Ask::Lost);
            let is_lost = |token: &String| tokens.iter().any(|(e, t)| t == token && heard.lost.contains(e));
            let mut hands = self.hands.lock();
            hands.runs.retain(|_, run| !is_lost(&run.token));
            hands
                .due
                .retain(|due| due.again || due.foreign || !is_lost(&due.result.lease_token));
        }
        Ok(!tokens.iter().any(|(execution, _)| heard.lost.contains(execution)))
    }

    /// Who runs under a token.
    fn executor(&self, token: &str) -> Executor {
        Executor::Agent {
            agent: self.name.agent,
            session: lease_of(token).map_or(NodeId(0), |(_, session)| session),
        }
    }
}

/// The lease and the session of a token.
fn lease_of(token: &str) -> Option<(LeaseId, NodeId)> {
    let lease = u128::from_str_radix(token.get(..32)?, 16).ok()?;
    let session = u64::from_str_radix(token.get(32..48)?, 16).ok()?;
    Some((LeaseId(lease), NodeId(session)))
}
