//! Agents whose sessions claim on several nodes at once, and what of that outlives a server that crashes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pensum_core::agent::{AgentCommand, AgentSettings, Amounts, Demand};
use pensum_core::store::{AgentClaim, Call, Checkpoint, ClaimRequest, Claimed, Finish, Rejected, StoreError};
use pensum_core::task::Resources;
use pensum_core::time::Span;
use pensum_core::{ExecutionId, Json, Name, NewTask, NodeId, Outcome, TaskId};
use pensum_testing::postgres::{Mode, Server};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::conformance::world::{ids, json, task_with};
use crate::nodes::{LEASE, Nodes, in_time, noon, of_node};

impl Nodes {
    /// Registers an agent and opens a session, both through this node.
    async fn agent(&self, node: usize, name: &str, session: u64, settings: AgentSettings) {
        let (store, call) = (&self.stores[node], self.call());
        store.put_agent(&call, name.into(), settings).await.unwrap();
        self.open(node, name, session).await;
    }

    async fn open(&self, node: usize, name: &str, session: u64) {
        let (store, call) = (&self.stores[node], self.call());
        store.open_session(&call, name.into(), NodeId(session)).await.unwrap();
    }

    /// How many leases there are, and what their tasks take together.
    async fn held(&self) -> (usize, Amounts) {
        let sql = "SELECT c.requires, count(*) FROM pensum.live l JOIN pensum.class c ON c.id = l.class
                   WHERE l.lease IS NOT NULL GROUP BY c.requires";
        let (mut leases, mut taken) = (0, Amounts::default());
        for row in self.watcher.query(sql, &[]).await.unwrap() {
            let (demand, count) = (Demand::from_text(row.get(0)).unwrap(), row.get::<_, i64>(1));
            leases += count as usize;
            taken = taken.plus(demand.resources.times(count as u64));
        }
        (leases, taken)
    }

    async fn leases_of(&self, session: u64) -> i64 {
        let sql = "SELECT count(*) FROM pensum.live WHERE node = $1";
        self.watcher.query_one(sql, &[&(session as i64)]).await.unwrap().get(0)
    }
}

fn able(slots: u32, cpu: f64) -> AgentSettings {
    AgentSettings {
        capabilities: vec!["work".into()],
        max_concurrent_tasks: slots,
        resources: Some(cores(cpu)),
        lease: Some(Span(LEASE)),
        ..AgentSettings::default()
    }
}

fn cores(cpu: f64) -> Resources {
    Resources {
        cpu_cores: (cpu > 0.0).then_some(cpu),
        ..Resources::default()
    }
}

fn work(cpu: f64) -> NewTask {
    task_with(|task| {
        task.spec.handler = "work".into();
        task.spec.details_mut().resources = Some(cores(cpu));
    })
}

fn preferring(agent: &str) -> NewTask {
    task_with(|task| {
        task.spec.handler = "work".into();
        task.spec.details_mut().agent_id = Some(agent.to_owned());
    })
}

fn of_agent(name: &str, session: u64, slots: usize, have: &[ExecutionId]) -> ClaimRequest {
    ClaimRequest {
        executor: Name::from(name),
        agent: Some(AgentClaim {
            namespace: "default".into(),
            name: name.into(),
            have: have.to_vec(),
        }),
        ..of_node(session, slots)
    }
}

fn execution(claimed: &Claimed) -> ExecutionId {
    ExecutionId {
        task: claimed.lease.task,
        attempt: claimed.lifecycle.attempt,
    }
}

fn done(claimed: &Claimed) -> Finish {
    Finish::new(claimed.lease, Outcome::Done(Json::null()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_polls_two_nodes_at_once_gets_no_more_than_it_can_do() {
    const TASKS: usize = 300;
    let nodes = Nodes::new(2).await;
    nodes.agent(0, "w", 71, able(5, 4.0)).await;
    let mixed = (0..TASKS).map(|n| work([1.0, 0.0, 2.5][n % 3]));
    nodes.add(0, mixed.collect()).await;
    let (finished, twice) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut pollers = JoinSet::new();
    for poller in 0..4 {
        let (store, now) = (Arc::clone(&nodes.stores[poller % 2]), nodes.now);
        let (finished, twice) = (Arc::clone(&finished), Arc::clone(&twice));
        pollers.spawn(async move {
            while finished.load(Ordering::SeqCst) < TASKS {
                let request = ClaimRequest {
                    wait: Duration::from_millis(100),
                    ..of_agent("w", 71, 3, &[])
                };
                // What another poller got and has not ended yet is answered here, too.
                for claimed in store.claim(request, now).await.unwrap() {
                    match &store.finish(vec![done(&claimed)], now).await.unwrap()[0] {
                        Ok(_) => _ = finished.fetch_add(1, Ordering::SeqCst),
                        Err(Rejected::LeaseLost(_)) => _ = twice.fetch_add(1, Ordering::SeqCst),
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        });
    }
    let (mut looks, mut most) = (0, 0);
    let offered = Amounts::of(&cores(4.0));
    while finished.load(Ordering::SeqCst) < TASKS {
        let (leases, taken) = nodes.held().await;
        assert!(leases <= 5 && taken.fits(offered), "{leases} leases take {taken:?}");
        (looks, most) = (looks + 1, most.max(leases));
    }
    in_time(pollers.join_all()).await;
    assert_eq!(finished.load(Ordering::SeqCst), TASKS);
    assert!(looks > 10 && most > 1, "{looks} looks saw {most} leases at most");
    assert_eq!(nodes.stores[1].agents("default").await.unwrap()[0].running, 0);
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_one_moment_give_a_machine_no_more_than_it_has() {
    let nodes = Nodes::new(2).await;
    nodes.agent(0, "w", 71, able(100, 4.0)).await;
    for round in 0..10 {
        nodes.add(0, (0..20).map(|_| work(1.0)).collect()).await;
        // The agent knows of everything, so that only what is new is answered.
        let (one, other) = (nodes.take(0, of_agent("w", 71, 10, &[])), async {
            nodes.take(1, of_agent("w", 71, 10, &[])).await
        });
        let (one, other) = tokio::join!(one, other);
        let leases: HashSet<TaskId> = ids(&one).into_iter().chain(ids(&other)).collect();
        assert_eq!(leases.len(), 4, "round {round}");
        let node = |store: usize| {
            let request = ClaimRequest {
                resources: Some(Amounts::of(&cores(3.0))),
                ..of_node(1, 10)
            };
            nodes.take(store, request)
        };
        let (here, there, again) = tokio::join!(node(0), node(1), node(0));
        assert_eq!(here.len() + there.len() + again.len(), 3, "round {round}");
        let once: Vec<Claimed> = if one.len() == 4 { one } else { other };
        nodes.end(1, &once).await;
        for claimed in [here, there, again] {
            nodes.end(0, &claimed).await;
        }
        let rest = nodes.take(0, of_node(2, 100)).await;
        assert_eq!(rest.len(), 13);
        nodes.end(0, &rest).await;
    }
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_replaced_while_it_claims_keeps_nothing() {
    let nodes = Nodes::new(2).await;
    nodes.agent(0, "w", 100, able(50, 0.0)).await;
    nodes.add(0, (0..3).map(|_| work(0.0)).collect()).await;
    let (mut before, mut after) = (0, 0);
    for round in 0..30 {
        let (old, new) = (100 + round, 101 + round);
        let claimed = nodes.stores[0].claim(of_agent("w", old, 2, &[]), nodes.now);
        let call = nodes.call();
        let opened = nodes.stores[1].open_session(&call, "w".into(), NodeId(new));
        let (claimed, opened) = tokio::join!(claimed, opened);
        opened.unwrap();
        match claimed {
            Ok(claimed) => {
                before += 1;
                let late = nodes.stores[0].finish(claimed.iter().map(done).collect(), nodes.now);
                for ended in late.await.unwrap() {
                    assert!(matches!(ended, Err(Rejected::LeaseLost(_))), "{ended:?}");
                }
            }
            Err(StoreError::Rejected(Rejected::SessionFenced(_))) => after += 1,
            Err(other) => panic!("{other}"),
        }
        assert_eq!(nodes.leases_of(old).await, 0);
        nodes.verify().await;
        // What crashed with it comes alone next, and is none the worse for it.
        let again = nodes.take(0, of_agent("w", new, 1, &[])).await;
        nodes.end(0, &again).await;
        nodes.add(1, again.iter().map(|_| work(0.0)).collect()).await;
    }
    assert_eq!(before + after, 30);
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_leased_to_an_agent_another_answers_again_with_the_same_lease() {
    let nodes = Nodes::new(2).await;
    nodes.agent(0, "w", 71, able(5, 0.0)).await;
    let tasks = nodes.add(0, (0..3).map(|_| work(0.0)).collect()).await;
    let first = nodes.take(0, of_agent("w", 71, 2, &[])).await;
    let checkpoint = Checkpoint {
        state: Some(json("{\"step\":7}")),
        ..Checkpoint::new(first[0].lease)
    };
    nodes.stores[1]
        .checkpoint(checkpoint, nodes.now)
        .await
        .unwrap()
        .unwrap();
    let have = [execution(&first[1])];
    let again = nodes.take(1, of_agent("w", 71, 5, &have)).await;
    assert_eq!((again.len(), again[0].lease), (1, first[0].lease));
    assert_eq!(again[0].checkpoint, Some(json("{\"step\":7}")));
    // Whichever node hears of an end, the others do not count on it any more.
    nodes.end(1, &first).await;
    let next = nodes.take(0, of_agent("w", 71, 5, &have)).await;
    assert_eq!(ids(&next), [tasks[2]]);
    nodes.end(0, &next).await;
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preference_is_kept_on_every_node_and_falls_back_within_a_moment() {
    let mut nodes = Nodes::new(2).await;
    nodes.agent(0, "best", 71, able(1, 0.0)).await;
    nodes.agent(0, "other", 72, able(5, 0.0)).await;
    let id = nodes.add(0, vec![preferring("best")]).await[0];
    assert!(nodes.take(1, of_node(1, 5)).await.is_empty());
    assert!(nodes.take(1, of_agent("other", 72, 5, &[])).await.is_empty());
    let parked = [of_node(1, 1), of_agent("other", 72, 1, &[])].map(|request| {
        let wait = Duration::from_secs(2);
        nodes.park(1, ClaimRequest { wait, ..request })
    });
    let before = Instant::now();
    let drain = AgentCommand::Drain;
    nodes.stores[0]
        .command_agent(&nodes.call(), "best".into(), drain)
        .await
        .unwrap();
    let mut taken = Vec::new();
    for parked in parked {
        let (claimed, at) = in_time(parked).await.unwrap();
        let waited = at.saturating_duration_since(before);
        assert!(
            claimed.is_empty() || waited < Duration::from_millis(1_500),
            "{waited:?}"
        );
        taken.extend(claimed);
    }
    assert_eq!(ids(&taken), [id]);
    nodes.end(1, &taken).await;

    // It comes back, and then falls silent: nobody says so.
    let silent = AgentSettings {
        lease: Some(Span(Duration::from_millis(1_500))),
        ..able(1, 0.0)
    };
    nodes.now = nodes.now.plus(Duration::from_secs(100));
    nodes.agent(0, "best", 71, silent).await;
    let undrain = AgentCommand::Undrain;
    nodes.stores[0]
        .command_agent(&nodes.call(), "best".into(), undrain)
        .await
        .unwrap();
    for (node, request) in [(1, of_node(2, 1)), (0, of_agent("other", 72, 1, &[]))] {
        let (store, call) = (&nodes.stores[0], nodes.call());
        store.beat_agent(&call, "best".into(), Some(NodeId(71))).await.unwrap();
        // The other node may have read the agent just before it came back.
        let back = Instant::now();
        let id = loop {
            let id = nodes.add(1 - node, vec![preferring("best")]).await[0];
            let early = nodes.take(node, request.clone()).await;
            if early.is_empty() {
                break id;
            }
            nodes.end(node, &early).await;
            assert!(back.elapsed() < Duration::from_secs(2), "nobody waits for the agent");
        };
        let before = Instant::now();
        let (claimed, at) = in_time(nodes.park(node, request)).await.unwrap();
        assert_eq!(ids(&claimed), [id]);
        let waited = at.saturating_duration_since(before);
        let silent_for = Duration::from_millis(1_500);
        assert!(waited > silent_for - Duration::from_millis(100), "{waited:?}");
        assert!(waited < silent_for + Duration::from_millis(1_500), "{waited:?}");
        nodes.end(node, &claimed).await;
        nodes.now = nodes.now.plus(Duration::from_secs(100));
    }
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_task_wakes_few_of_many_parked_agents_and_many_tasks_wake_all() {
    const AGENTS: usize = 60;
    let nodes = Nodes::new(2).await;
    let mut parked = JoinSet::new();
    for agent in 0..AGENTS {
        let (name, session) = (format!("w{agent}"), 1_000 + agent as u64);
        nodes.agent(agent % 2, &name, session, able(2, 0.0)).await;
        let waiting = nodes.park(agent % 2, of_agent(&name, session, 1, &[]));
        parked.spawn(async move { waiting.await.unwrap() });
    }
    // Those that were heard again have tried again.
    let tried = async || {
        let sql = "SELECT count(*) FROM pensum.agent WHERE seen_at > $1";
        let row = nodes.watcher.query_one(sql, &[&nodes.now.as_micros()]).await.unwrap();
        row.get::<_, i64>(0)
    };
    nodes.add(0, vec![work(0.0)]).await;
    let first = in_time(parked.join_next()).await.unwrap().unwrap();
    assert_eq!(first.0.len(), 1);
    let woken = tried().await;
    assert!(woken <= 20, "{woken} agents tried for one task");
    // For nobody here: nobody is woken.
    let strange = task_with(|task| task.spec.handler = "strange".into());
    nodes.add(1, vec![strange]).await;
    let before = Instant::now();
    nodes.add(0, (1..AGENTS).map(|_| work(0.0)).collect()).await;
    let mut waits = Vec::new();
    while let Some(claimed) = in_time(parked.join_next()).await {
        let (claimed, at) = claimed.unwrap();
        assert_eq!(claimed.len(), 1);
        waits.push(at.saturating_duration_since(before));
    }
    assert_eq!(waits.len(), AGENTS - 1);
    assert!(waits.iter().all(|wait| *wait < Duration::from_secs(20)), "{waits:?}");
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_agent_hears_of_work_of_another_node_and_of_a_place_that_it_freed_itself() {
    let nodes = Nodes::new(2).await;
    nodes.agent(0, "w", 71, able(2, 1.0)).await;
    let (mut waits, mut held) = (Vec::new(), Vec::new());
    for round in 0..20 {
        let have: Vec<ExecutionId> = held.iter().map(execution).collect();
        let parked = nodes.park(1, of_agent("w", 71, 1, &have));
        // On even rounds there is nothing to do; on odd ones something for which there is no room.
        let id = nodes.add(0, vec![work(1.0)]).await[0];
        let before = match round % 2 {
            0 => Instant::now(),
            _ => {
                assert!(nodes.take(0, of_agent("w", 71, 1, &have)).await.is_empty());
                nodes.end(1, &held).await;
                Instant::now()
            }
        };
        let (claimed, at) = in_time(parked).await.unwrap();
        assert_eq!(ids(&claimed), [id]);
        waits.push(at.saturating_duration_since(before));
        held = claimed;
        if round % 2 == 1 {
            nodes.end(0, &held).await;
            held.clear();
        }
    }
    waits.sort_unstable();
    assert!(waits[waits.len() / 2] < Duration::from_millis(150), "{waits:?}");
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_an_agent_outlives_a_crash_of_the_server() {
    // Nothing is written out unless somebody waits for it.
    let mut server = Server::start(&[("wal_writer_delay", "10s")]);
    let (now, call) = (noon(), Call::new("tester", noon()));
    let store = pensum_store::connect(&server.url(), "before").await.unwrap();
    store.put_agent(&call, "w".into(), able(5, 0.0)).await.unwrap();
    store.open_session(&call, "w".into(), NodeId(71)).await.unwrap();
    for _ in 0..3 {
        let store = pensum_store::connect(&server.url(), "before").await.unwrap();
        store.enqueue(&call, vec![work(0.0)]).await.unwrap();
        let claimed = in_time(store.claim(of_agent("w", 71, 1, &[]), now)).await.unwrap();
        assert_eq!(claimed.len(), 1);
        tokio::task::block_in_place(|| {
            server.stop(Mode::Immediate);
            server.start_again();
        });
        let store = pensum_store::connect(&server.url(), "after").await.unwrap();
        let ended = store.finish(vec![done(&claimed[0])], now).await.unwrap();
        assert!(ended[0].is_ok(), "{ended:?}");
        assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
    }
}
