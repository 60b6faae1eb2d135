//! Bugs to plant: each is a change of one place of the real code, and is looked for as text, so that the list cannot go
//! stale unnoticed.

use crate::scenario::{Size, StoreKind};

/// A bug, and within how many seeds it has to be caught.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What is wrong then.
    pub wrong: &'static str,
    /// Where, from the root of the repository, and what becomes what.
    pub edits: &'static [Edit],
    /// Over which store it shows.
    pub store: StoreKind,
    /// In worlds of which size.
    pub size: Size,
    /// Within how many seeds, counted from 1.
    pub seeds: u64,
}

/// One place of the code, which holds `find` exactly once.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// The file.
    pub file: &'static str,
    /// What is there.
    pub find: &'static str,
    /// What is there instead.
    pub replace: &'static str,
}

const TRANSITION: &str = "crates/core/src/transition.rs";
const OUTCOME: &str = "crates/core/src/outcome.rs";
const MODEL: &str = "crates/core/src/model/mod.rs";
const MODEL_QUEUE: &str = "crates/core/src/model/queue.rs";
const MODEL_RUN: &str = "crates/core/src/model/run.rs";
const MODEL_ENQUEUE: &str = "crates/core/src/model/enqueue.rs";
const AGENT: &str = "crates/core/src/agent.rs";
const BREAKER: &str = "crates/core/src/breaker.rs";
const MODEL_AGENT: &str = "crates/core/src/model/agent.rs";
const QUEUE: &str = "crates/core/src/queue.rs";
const EXECUTOR: &str = "crates/engine/src/executor.rs";
const COMPLETER: &str = "crates/engine/src/completer.rs";
const CONTEXT: &str = "crates/engine/src/context.rs";
const KEEPER: &str = "crates/engine/src/keeper.rs";
const RESULTS: &str = "crates/engine/src/agents/results.rs";
const SQLITE_AGENT: &str = "crates/store/src/sqlite/agent.rs";
const SQLITE_CLAIM: &str = "crates/store/src/sqlite/claim.rs";
const SQLITE_FINISH: &str = "crates/store/src/sqlite/finish.rs";
const SQLITE_REAP: &str = "crates/store/src/sqlite/reap.rs";
const SQLITE_VIEW: &str = "crates/store/src/sqlite/view.rs";

pub(super) const fn model(name: &'static str, wrong: &'static str, edits: &'static [Edit], seeds: u64) -> Mutant {
    Mutant {
        name,
        wrong,
        edits,
        store: StoreKind::Model,
        size: Size::Small,
        seeds,
    }
}

pub(super) const fn sqlite(name: &'static str, wrong: &'static str, edits: &'static [Edit], seeds: u64) -> Mutant {
    Mutant {
        store: StoreKind::Sqlite,
        ..model(name, wrong, edits, seeds)
    }
}

pub(super) const fn edit(file: &'static str, find: &'static str, replace: &'static str) -> Edit {
    Edit { file, find, replace }
}

/// All but those of queues that limit what they take.
pub(super) const MUTANTS: &[Mutant] = &[
    model(
        "no-fence",
        "any holder may report, whatever its lease",
        &[
            edit(
                TRANSITION,
                "(Running, Event::Holder(lease, report)) if task.lease.is_some_and(|l| l.id == *lease) => {",
                "(Running, Event::Holder(_, report)) => {",
            ),
            edit(
                MODEL_RUN,
                "            .filter(|e| e.lifecycle.lease.is_some_and(|l| l.id == lease.lease))",
                "            .filter(|e| e.lifecycle.lease.is_some())",
            ),
        ],
        200,
    ),
    model(
        "stale-renewal",
        "whoever lost its lease may renew it",
        &[edit(
            MODEL_RUN,
            "            .filter(|e| e.lifecycle.lease.is_some_and(|l| l.id == lease.lease))",
            "            .filter(|e| e.lifecycle.lease.is_some())",
        )],
        200,
    ),
    model(
        "renewal-forgotten",
        "a renewal is answered and not kept",
        &[edit(
            MODEL_RUN,
            "            held.expires_at = expires_at;",
            "            let _ = held;",
        )],
        200,
    ),
    model(
        "early-reaper",
        "leases are taken back before they are over",
        &[edit(
            MODEL_RUN,
            "task.lease.filter(|l| l.expires_at <= now)",
            "task.lease.filter(|l| l.expires_at <= now.plus(Duration::from_secs(1)))",
        )],
        200,
    ),
    model(
        "no-reaper",
        "nobody takes leases back that have run out",
        &[edit(
            MODEL_RUN,
            "task.lease.filter(|l| l.expires_at <= now)",
            "task.lease.filter(|_| false)",
        )],
        100,
    ),
    model(
        "crash-is-failure",
        "a lost lease counts as a failure of the task",
        &[edit(
            TRANSITION,
            "            same_attempt: false,\n            crashes,",
            "            same_attempt: false,\n            failures: task.failures + 1,\n            crashes,",
        )],
        500,
    ),
    model(
        "one-retry-too-many",
        "the last failure is retried, too",
        &[edit(OUTCOME, "(failures < max_retries)", "(failures <= max_retries)")],
        50,
    ),
    model(
        "one-retry-too-few",
        "the last retry does not happen",
        &[edit(
            OUTCOME,
            "(failures < max_retries)",
            "(failures + 1 < max_retries)",
        )],
        50,
    ),
    model(
        "failures-not-counted",
        "a task fails for ever",
        &[edit(
            TRANSITION,
            "        failures: task.failures + 1,",
            "        failures: task.failures,",
        )],
        50,
    ),
    model(
        "release-is-failure",
        "a deploy spends an attempt",
        &[edit(
            TRANSITION,
            "Report::Released => requeued(task, now, EventKind::Released, now),",
            "Report::Released => backed_off(task, Duration::ZERO, now),",
        )],
        1_000,
    ),
    model(
        "cancel-forgotten-in-a-crash",
        "a task that was to stop runs again after its node died",
        &[edit(
            TRANSITION,
            "    if task.cancel_requested_at.is_some() {\n        let mut end",
            "    if false {\n        let mut end",
        )],
        2_000,
    ),
    model(
        "blamed-at-once",
        "one crash is enough to end a task",
        &[edit(
            TRANSITION,
            "    if crashes >= CRASHES_ALONE_MAX {",
            "    if blame != Blame::None {",
        )],
        200,
    ),
    model(
        "never-blamed",
        "what kills its node is tried for ever",
        &[edit(
            TRANSITION,
            "    if crashes >= CRASHES_ALONE_MAX {",
            "    if crashes >= 1_000_000 {",
        )],
        500,
    ),
    model(
        "failed-dependency-is-met",
        "a task runs although what it depends on failed",
        &[edit(
            TRANSITION,
            "    if !completed && task.on_dependency_failure == OnDependencyFailure::Cancel {",
            "    if !completed && task.unmet > 1_000 {",
        )],
        500,
    ),
    model(
        "first-dependency-is-enough",
        "a task does not wait for its other dependencies",
        &[edit(
            TRANSITION,
            "    let unmet = task.unmet - 1;",
            "    let unmet = 0;",
        )],
        1_000,
    ),
    model(
        "dependants-not-told",
        "whoever waits for a task waits for ever",
        &[edit(
            MODEL,
            "                .push_back((dependant, Event::DependencyEnded(completed), error));",
            "                .extend((dependant < 0).then_some((dependant, Event::DependencyEnded(completed), error)));",
        )],
        100,
    ),
    model(
        "parent-not-told",
        "whoever waits for its children waits for ever",
        &[edit(
            MODEL,
            "            && self.unfinished_children(parent) == 0",
            "            && self.unfinished_children(parent) > 1_000",
        )],
        100,
    ),
    model(
        "waits-never-end",
        "a wait whose time is over goes on",
        &[edit(
            MODEL_RUN,
            "            .filter(|at| *at <= now)\n            .map(|at| (at, Event::WakeDue, None));",
            "            .filter(|_| false)\n            .map(|at| (at, Event::WakeDue, None));",
        )],
        100,
    ),
    model(
        "busy-keys-not-seen",
        "a task starts while another one of its key runs",
        &[edit(
            MODEL_QUEUE,
            "            if entry.lifecycle.state == State::Running\n                && let Some(key) = self.key_of",
            "            if entry.lifecycle.state == State::Waiting\n                && let Some(key) = self.key_of",
        )],
        200,
    ),
    model(
        "keys-not-told-apart-in-a-claim",
        "one claim takes two tasks of a key",
        &[edit(
            MODEL_RUN,
            "turns.entry(key).or_default().admits(self",
            "turns.get(&key).copied().unwrap_or_default().admits(self",
        )],
        1_000,
    ),
    model(
        "low-goes-first",
        "claims take the least important first",
        &[edit(
            MODEL_QUEUE,
            "rule.level(entry.spec.priority,",
            "rule.level(Priority::ALL[5 - entry.spec.priority.level() as usize],",
        )],
        500,
    ),
    model(
        "unique-keys-not-held",
        "a second task with a unique key is kept",
        &[edit(
            MODEL_ENQUEUE,
            "                (None, _) => {}\n",
            "                (None, _) | (Some(_), OnConflict::Keep) => {}\n",
        )],
        500,
    ),
    model(
        "requests-not-remembered",
        "a repeated request is carried out again",
        &[edit(
            MODEL_ENQUEUE,
            "        self.remember(call, ids.iter().map(|e| e.id).collect());",
            "",
        )],
        500,
    ),
    model(
        "outcome-dropped",
        "an outcome that the store did not take is not brought again",
        &[edit(
            COMPLETER,
            "                let nap = failures.next(engine, &error).min(PAUSE_MAX);",
            "                if engine.now() > Time::EPOCH {\n                    return;\n                }\n                let nap = failures.next(engine, &error).min(PAUSE_MAX);",
        )],
        100,
    ),
    model(
        "starts-after-its-lease",
        "a run starts although its lease has run out",
        &[edit(
            EXECUTOR,
            " || run.lease_until() <= now.plus(margin) {",
            " || run.lease_until() <= now.minus(margin * 1_000) {",
        )],
        2_000,
    ),
    model(
        "children-twice",
        "a write with children whose answer is lost is made again",
        &[edit(
            CONTEXT,
            "filter(|_| tries > 1 && !checkpoint.spawn.is_empty());",
            "filter(|_| tries > 1_000 && !checkpoint.spawn.is_empty());",
        )],
        500,
    ),
    model(
        "no-renewals",
        "long runs lose their leases",
        &[edit(
            KEEPER,
            "let is_due = now.since(self.renewed_at) >= engine.lease() / RENEWALS_PER_LEASE;",
            "let is_due = now.since(self.renewed_at) >= engine.lease() * RENEWALS_PER_LEASE;",
        )],
        100,
    ),
    model(
        "steps-done-again",
        "a kept step is not looked up",
        &[edit(
            CONTEXT,
            "if let Some(result) = self.kept_step(name).await? {",
            "if let Some(result) = self.kept_step(name).await?.filter(|_| name.is_empty()) {",
        )],
        500,
    ),
    sqlite(
        "sqlite-no-fence",
        "a checkpoint of whoever lost its lease is kept",
        &[edit(
            SQLITE_FINISH,
            "        if leased.closing || leased.lease_id() != Some(lease.lease) {\n            return None;",
            "        if leased.closing {\n            return None;",
        )],
        500,
    ),
    sqlite(
        "sqlite-stale-renewal",
        "whoever lost its lease may renew it",
        &[edit(
            SQLITE_FINISH,
            "            if leased.closing || leased.lease_id() != Some(beat.lease.lease) {",
            "            if leased.closing {",
        )],
        500,
    ),
    sqlite(
        "sqlite-early-reaper",
        "leases are taken back before they are over",
        &[edit(
            SQLITE_REAP,
            "lease.filter(|lease| lease.expires_at <= now)?;",
            "lease.filter(|lease| lease.expires_at <= now.plus(std::time::Duration::from_secs(1)))?;",
        )],
        500,
    ),
    sqlite(
        "sqlite-starts-what-is-overdue",
        "a task that has expired starts",
        &[edit(
            SQLITE_CLAIM,
            "        if is_overdue(&live, now) {",
            "        if is_overdue(&live, now.minus(std::time::Duration::from_secs(3_600))) {",
        )],
        1_000,
    ),
    model(
        "queue-one-too-many",
        "a queue runs one more than it may",
        &[edit(
            QUEUE,
            "room.starts = u64::from(max).saturating_sub(running);",
            "room.starts = u64::from(max + 1).saturating_sub(running);",
        )],
        200,
    ),
    model(
        "queue-not-paused",
        "a paused queue starts its tasks",
        &[edit(
            QUEUE,
            "if let Some(since) = self.paused_at {",
            "if let Some(since) = self.paused_at.filter(|_| !self.settings.auto_start) {",
        )],
        200,
    ),
    sqlite(
        "sqlite-queue-counts-late",
        "what a claim has just taken of a queue is not counted in that claim",
        &[edit(SQLITE_CLAIM, "        self.rooms.take(class);\n", "")],
        500,
    ),
    sqlite(
        "sqlite-queue-slot-leaks",
        "a lease that has ended still counts for its queue",
        &[edit(
            SQLITE_VIEW,
            "        self.held[leased.live.class as usize] -= 1;\n",
            "",
        )],
        500,
    ),
    model(
        "agent-fenced-session-claims",
        "a session that was replaced may go on claiming",
        &[edit(
            AGENT,
            "match self.session == Some(session) {",
            "match self.session.is_some_and(|present| present == session || self.fenced.contains(&session)) {",
        )],
        300,
    ),
    model(
        "agent-session-keeps-its-leases",
        "what a replaced session holds stays with it",
        &[edit(
            MODEL_AGENT,
            "let replaced = record.open(session, call.now)?;",
            "let replaced = record.open(session, call.now)?.filter(|_| false);",
        )],
        300,
    ),
    model(
        "agent-answer-lost",
        "what was in a lost answer is not given again",
        &[edit(MODEL_AGENT, "if !again.is_empty() {", "if again.len() > 1_000 {")],
        300,
    ),
    model(
        "agent-slots-not-counted",
        "what an agent has takes none of its slots",
        &[edit(
            MODEL_AGENT,
            ".saturating_sub(held.len());",
            ".saturating_sub(held.len() / 1_000);",
        )],
        500,
    ),
    model(
        "agent-drains-on",
        "a draining agent gets new tasks",
        &[edit(
            MODEL_AGENT,
            "if is_draining {",
            "if is_draining && held.len() > 1_000 {",
        )],
        300,
    ),
    model(
        "agent-not-waited-for",
        "a task that prefers an agent waits for it only half as long as it may be silent",
        &[edit(
            AGENT,
            "            && self.is_alive(now)\n",
            "            && self.is_alive(now.plus(self.settings.lease() / 2))\n",
        )],
        500,
    ),
    model(
        "agent-brings-what-is-not-its-own",
        "a poll brings results of another agent",
        &[edit(
            RESULTS,
            "        && polling != agent\n",
            "        && polling.len() > agent.len() + 1_000\n",
        )],
        1_500,
    ),
    model(
        "resources-of-one-claim",
        "what a claim takes of a machine is not added up within it",
        &[edit(MODEL_RUN, "free = free.map(|free| free.minus(needs(row)));", "")],
        500,
    ),
    model(
        "breaker-counts-no-probes",
        "a half-open breaker lets everybody try",
        &[edit(
            BREAKER,
            ".saturating_sub(probing) {",
            ".saturating_sub(probing / 1_000) {",
        )],
        300,
    ),
    model(
        "breaker-stays-closed",
        "failures do not open a breaker",
        &[edit(
            BREAKER,
            "let opens = by_rate || by_count && !succeeded;",
            "let opens = !succeeded && (by_count || by_rate) && calls > 1_000;",
        )],
        300,
    ),
    sqlite(
        "sqlite-agent-answer-lost",
        "what was in a lost answer is not given again",
        &[edit(
            SQLITE_AGENT,
            "        if named.len() == held {",
            "        if named.len() <= held {",
        )],
        300,
    ),
    sqlite(
        "sqlite-resources-of-one-claim",
        "what a claim takes of a machine is not added up within it",
        &[edit(SQLITE_CLAIM, "        self.bounds.take(class);\n", "")],
        500,
    ),
];
