//! More callers of the workload: one who fills a queue that drops or refuses, one whose tasks are not durable, and one who
//! keeps an agent, its sessions and leases, and a circuit breaker that covers what it runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::agent::{AgentCommand, AgentSettings};
use pensum_core::breaker::{BreakerCommand, BreakerSettings};
use pensum_core::queue::{QueueCommand, QueueSettings, Rate, WhenFull};
use pensum_core::store::{AgentClaim, ClaimRequest, Claimed, Finish, NodeBeat, Store};
use pensum_core::time::Span;
use pensum_core::{ErrorInfo, ExecutionId, Json, Name, NewTask, NodeId, Outcome, Priority, TaskId};

use super::dice::Dice;
use super::ledger::Effect;
use super::workload::{World, call, task};

/// The queue that bounds what waits in it, and that no node claims.
const BOUNDED: &str = "bounded";
/// The queue of tasks that end with their process; no node claims it before the cut.
pub(super) const PREVIEWS: &str = "previews";
/// The queue of the agent, which has the skill of that name.
const CRAFTS: &str = "crafts";
/// The agent.
const HAND: &str = "hand";
/// The breaker that covers what the agent runs.
const VALVE: &str = "valve";
/// How much is asked of the agent in one session.
const HAND_ROUNDS: usize = 60;
/// How long leases last and processes may be silent: longer than the workload.
const HOUR: Duration = Duration::from_secs(3600);

/// How things stand that have a name, as it was told last.
struct Stands(BTreeMap<String, String>);

impl Stands {
    /// Tells what has changed.
    fn tell(&mut self, effect: &mut Effect, what: String, how: String) {
        if self.0.insert(what.clone(), how.clone()).as_ref() != Some(&how) {
            effect.stands.push((what, how));
        }
    }
}

/// How every queue, agent and breaker stands that this workload has, by kind and name.
pub(super) async fn standing(store: &impl Store) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for queue in store.queues("default").await.unwrap() {
        let (paused, depth) = (queue.paused_at.is_some(), queue.settings.max_depth);
        let how = format!("{}/{paused}/{depth:?}", queue.version);
        all.insert(format!("queue.{}", queue.name), how);
    }
    for agent in store.agents("default").await.unwrap() {
        let (session, slots) = (agent.session.map(|id| id.0), agent.settings.max_concurrent_tasks);
        let how = format!("{}/{session:?}/{}/{slots}", agent.version, agent.draining_at.is_some());
        all.insert(format!("agent.{}", agent.name), how);
    }
    for breaker in store.breakers("default").await.unwrap() {
        let memory = &breaker.memory;
        let (good, bad) = memory
            .slices
            .iter()
            .fold((0, 0), |sum, slice| (sum.0 + slice.1, sum.1 + slice.2));
        let opened = memory.opened_at.map(|at| at.as_micros());
        let how = format!("{}/{opened:?}/{good}/{bad}/{}", breaker.version, memory.succeeded);
        all.insert(format!("breaker.{}", breaker.name), how);
    }
    all
}

impl World {
    /// How those stand from the session before whose names begin so.
    async fn stands(&self, kinds: &[&str]) -> Stands {
        let mut all = standing(&self.store).await;
        all.retain(|what, _| kinds.iter().any(|kind| what.starts_with(kind)));
        Stands(all)
    }

    /// Notes how those stand whose names begin so; what is gone stands nowhere.
    async fn look(&self, stands: &mut Stands, kinds: &[&str], effect: &mut Effect) {
        let all = standing(&self.store).await;
        let is_of = |what: &String| kinds.iter().any(|kind| what.starts_with(kind));
        let gone: Vec<String> = stands
            .0
            .keys()
            .filter(|what| !all.contains_key(*what))
            .cloned()
            .collect();
        for what in gone.into_iter().filter(is_of) {
            stands.tell(effect, what, "gone".to_owned());
        }
        for (what, how) in all.into_iter().filter(|(what, _)| is_of(what)) {
            stands.tell(effect, what, how);
        }
    }

    /// Tasks of these that have ended.
    async fn ended(&self, tasks: &mut Vec<TaskId>, effect: &mut Effect) {
        let mut left = Vec::new();
        for id in tasks.drain(..) {
            let record = self.store.task("default", id).await.unwrap().unwrap();
            match record.lifecycle.state {
                state if state.is_terminal() => effect.ended.push((id, state)),
                _ => left.push(id),
            }
        }
        *tasks = left;
    }

    /// One person fills a queue, and changes what it takes.
    pub(super) async fn keep_bounded(self: Arc<World>, mut dice: Dice) {
        let kinds = ["queue.bounded"];
        let (mut waiting, mut stands) = (Vec::new(), self.stands(&kinds).await);
        for round in 0..30 {
            let number = self.notes.ask(&[]);
            let (now, mut effect) = (call(self.notes.now()), Effect::default());
            let queue = Name::from(BOUNDED);
            match dice.roll(10) {
                _ if round == 0 => drop(
                    self.store
                        .put_queue(&now, queue, bounded(&mut dice), None)
                        .await
                        .unwrap(),
                ),
                0 => drop(
                    self.store
                        .put_queue(&now, queue, bounded(&mut dice), None)
                        .await
                        .unwrap(),
                ),
                1 => drop(
                    self.store
                        .command_queue(&now, queue, QueueCommand::Pause)
                        .await
                        .unwrap(),
                ),
                2 => drop(
                    self.store
                        .command_queue(&now, queue, QueueCommand::Resume)
                        .await
                        .unwrap(),
                ),
                _ => {
                    let batch = (0..1 + dice.roll(3) as usize).map(|item| {
                        let mut task = task(number, item, BOUNDED);
                        task.spec.key = dice.chance(50).then(|| Name::from(format!("bounded {}", dice.roll(2))));
                        task.spec.details_mut().units = Some(1 + dice.roll(3) as u32);
                        task
                    });
                    match self.store.enqueue(&now, batch.collect()).await {
                        Ok(made) => effect.made = made.into_iter().map(|made| made.id).collect(),
                        Err(refused) => assert!(refused.to_string().contains("max_depth"), "{refused}"),
                    }
                    // What was dropped for them goes with them.
                    self.ended(&mut waiting, &mut effect).await;
                    waiting.extend(&effect.made);
                }
            }
            self.look(&mut stands, &kinds, &mut effect).await;
            self.notes.answer(number, &effect);
        }
    }

    /// A process whose tasks end with it at the latest.
    pub(super) async fn preview(self: Arc<World>, process: NodeId, mut dice: Dice) {
        let beat = NodeBeat {
            node: process,
            name: Name::from("previewer"),
            version: "1".to_owned(),
            address: None,
            started_at: self.notes.now(),
            slots: 1,
            running: 0,
            ttl: HOUR,
        };
        self.store.heartbeat(beat, self.notes.now()).await.unwrap();
        for _ in 0..25 {
            let number = self.notes.ask(&[]);
            let batch = (0..1 + dice.roll(4) as usize).map(|item| {
                let mut task = task(number, item, PREVIEWS);
                task.spec.priority = Priority::Critical;
                task.accept_by(process);
                task
            });
            let made = self
                .store
                .enqueue(&call(self.notes.now()), batch.collect())
                .await
                .unwrap();
            let effect = Effect {
                volatile: made.into_iter().map(|made| made.id).collect(),
                ..Effect::default()
            };
            self.notes.answer(number, &effect);
            tokio::time::sleep(Duration::from_millis(dice.roll(3))).await;
        }
    }

    /// Somebody who keeps an agent and a breaker, and the agent itself: one thing after the other.
    pub(super) async fn keep_hand(self: Arc<World>, session: u64, mut dice: Dice) {
        let kinds = ["agent.", "breaker."];
        let (mut hand, mut stands) = (Hand::new(session), self.stands(&kinds).await);
        for round in 0..HAND_ROUNDS {
            let held: Vec<TaskId> = hand.held.iter().map(|held| held.lease.task).collect();
            let number = self.notes.ask(&held);
            let mut effect = Effect::default();
            match dice.roll(20) {
                _ if round == 0 => self.put_hand(&mut dice).await,
                _ if round == 1 => self.put_valve().await,
                _ if round == 2 => self.open(&mut hand).await,
                // Nobody knows it in the next session.
                _ if round == HAND_ROUNDS - 1 => self.close(&mut hand).await,
                0 => self.put_hand(&mut dice).await,
                1 => self.open(&mut hand).await,
                2 => self.command_hand(&mut dice).await,
                3 => self.command_valve(&mut dice).await,
                4..8 => self.order(number, &mut dice, &mut effect).await,
                8..14 => self.take(&mut hand, &mut dice, &mut effect).await,
                _ => self.bring(number, &mut hand, &mut dice, &mut effect).await,
            }
            // A session that was replaced has lost what it held, some of it for good.
            let mut lost: Vec<TaskId> = held;
            lost.retain(|id| !effect.ended.iter().any(|(ended, _)| ended == id));
            self.ended(&mut lost, &mut effect).await;
            self.look(&mut stands, &kinds, &mut effect).await;
            self.notes.answer(number, &effect);
        }
    }

    /// The agent says that it goes, and gives back what it has.
    async fn close(&self, hand: &mut Hand) {
        let now = call(self.notes.now());
        let session = hand.session();
        self.store.close_session(&now, Name::from(HAND), session).await.unwrap();
        hand.held.clear();
    }

    async fn put_hand(&self, dice: &mut Dice) {
        let settings = AgentSettings {
            capabilities: vec![Name::from(CRAFTS)],
            max_concurrent_tasks: 2 + dice.roll(4) as u32,
            lease: Some(Span(HOUR)),
            title: None,
            agent_type: None,
            agent_version: None,
            resources: None,
            labels: BTreeMap::new(),
        };
        let now = call(self.notes.now());
        self.store.put_agent(&now, Name::from(HAND), settings).await.unwrap();
    }

    async fn put_valve(&self) {
        let settings = BreakerSettings {
            handlers: vec![Name::from(CRAFTS)],
            failures: Some(3),
            window: Span(HOUR),
            open_for: Span(Duration::from_millis(20)),
            ..BreakerSettings::default()
        };
        let now = call(self.notes.now());
        self.store
            .put_breaker(&now, Name::from(VALVE), settings, None)
            .await
            .unwrap();
    }

    async fn open(&self, hand: &mut Hand) {
        hand.sessions += 1;
        hand.held.clear();
        let now = call(self.notes.now());
        self.store
            .open_session(&now, Name::from(HAND), hand.session())
            .await
            .unwrap();
    }

    async fn command_hand(&self, dice: &mut Dice) {
        let command = match dice.chance(30) {
            true => AgentCommand::Drain,
            false => AgentCommand::Undrain,
        };
        let now = call(self.notes.now());
        self.store.command_agent(&now, Name::from(HAND), command).await.unwrap();
    }

    async fn command_valve(&self, dice: &mut Dice) {
        let command = match dice.chance(50) {
            true => BreakerCommand::Trip,
            false => BreakerCommand::Reset,
        };
        let now = call(self.notes.now());
        self.store
            .command_breaker(&now, Name::from(VALVE), command)
            .await
            .unwrap();
    }

    /// Tasks for the agent.
    async fn order(&self, number: u64, dice: &mut Dice, effect: &mut Effect) {
        let craft = |item| -> NewTask {
            let mut task = task(number, item, CRAFTS);
            task.spec.handler = Name::from(CRAFTS);
            task
        };
        let batch = (0..1 + dice.roll(4) as usize).map(craft).collect();
        let made = self.store.enqueue(&call(self.notes.now()), batch).await.unwrap();
        effect.made = made.into_iter().map(|made| made.id).collect();
    }

    /// The agent asks for work.
    async fn take(&self, hand: &mut Hand, dice: &mut Dice, effect: &mut Effect) {
        let have = hand.held.iter().map(|held| ExecutionId {
            task: held.lease.task,
            attempt: held.lifecycle.attempt,
        });
        let request = ClaimRequest {
            capabilities: Some([Name::from(CRAFTS)].into()),
            agent: Some(AgentClaim {
                namespace: Name::from("default"),
                name: Name::from(HAND),
                have: have.collect(),
            }),
            ..ClaimRequest::new(hand.session(), HAND, 1 + dice.roll(3) as usize, HOUR)
        };
        let claimed = self.store.claim(request, self.notes.now()).await.unwrap();
        effect.given = claimed.iter().map(|claimed| claimed.lease.task).collect();
        hand.held.extend(claimed);
    }

    /// It brings a result.
    async fn bring(&self, number: u64, hand: &mut Hand, dice: &mut Dice, effect: &mut Effect) {
        let Some(held) = hand.held.pop() else { return };
        let error = ErrorInfo::new("boom", "it broke");
        let outcome = match dice.roll(4) {
            0 => Outcome::Fail(error),
            1 => Outcome::Retry {
                error,
                after: Some(Duration::from_millis(5)),
            },
            _ => Outcome::Done(Json::parse(format!(r#"{{"verb":{number}}}"#)).unwrap()),
        };
        let finish = Finish::new(held.lease, outcome);
        let answers = self.store.finish(vec![finish], self.notes.now()).await.unwrap();
        for answer in answers {
            effect.ended.extend(answer.unwrap().ended);
        }
    }
}

/// What the agent knows.
struct Hand {
    base: u64,
    sessions: u64,
    held: Vec<Claimed>,
}

impl Hand {
    const fn new(session: u64) -> Hand {
        Hand {
            base: 100_000 * (session + 1),
            sessions: 0,
            held: Vec::new(),
        }
    }

    const fn session(&self) -> NodeId {
        NodeId(self.base + self.sessions)
    }
}

/// A queue that bounds what waits in it.
fn bounded(dice: &mut Dice) -> QueueSettings {
    QueueSettings {
        max_depth: Some(3 + dice.roll(4) as u32),
        when_full: match dice.chance(70) {
            true => WhenFull::DropOldest,
            false => WhenFull::Refuse,
        },
        rate: dice.chance(50).then(|| Rate {
            starts: 10,
            per: Span(Duration::from_secs(1)),
            burst: 5,
        }),
        ageing: dice.chance(50).then(|| Span(Duration::from_secs(1 + dice.roll(5)))),
        fair: dice.chance(50),
        ..QueueSettings::default()
    }
}
