//! Results: which of them are taken, which were taken before, and what is wrong with the others.

use std::sync::Arc;

use foldhash::HashMap;
use pensum_core::store::{Call, Rejected};
use pensum_core::task::ExecutionStatus;
use pensum_core::transition::EventKind;
use pensum_core::{ExecutionId, Name, NodeId, Outcome, TaskId, TaskRecord};

use super::finish::{self, Ending, Last};
use super::outcome;
use super::runs::Run;
use super::token::Token;
use super::wire::{Accepted, AcceptedStatus, Faults, RESULTS_MAX, ResultInput};
use crate::{Engine, EngineError, kinds};

/// Events that end a run of an attempt.
const RUN_ENDS: [EventKind; 10] = [
    EventKind::Completed,
    EventKind::Failed,
    EventKind::Cancelled,
    EventKind::Retrying,
    EventKind::Again,
    EventKind::Waiting,
    EventKind::Yielded,
    EventKind::Released,
    EventKind::Crashed,
    EventKind::LeaseExpired,
];

impl Engine {
    /// Takes results of agents' runs; per-item answers, in order. What was accepted is on disk. An item that cannot be taken
    /// changes nothing and keeps nothing up.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for values that no request can have; those of the store, after which all of it can be sent again.
    pub async fn complete_executions(
        &self,
        call: &Call,
        results: Vec<ResultInput>,
    ) -> Result<Vec<Accepted>, EngineError> {
        let mut faults = Faults::default();
        check(&mut faults, &results, call);
        faults.finish()?;
        take(self, call, results, None).await
    }
}

/// What no result of a request may say.
pub(super) fn check(faults: &mut Faults, results: &[ResultInput], call: &Call) {
    faults.count("results", results.len(), RESULTS_MAX);
    for (index, result) in results.iter().enumerate() {
        let path = format!("results[{index}]");
        faults.usage(&path, result.usage);
        faults.logs(&path, &result.logs, call.now);
    }
}

/// Why a result is not taken.
struct Refused(AcceptedStatus, String);

/// Takes results, those of a poll only from the session that polls.
pub(super) async fn take(
    engine: &Engine,
    call: &Call,
    results: Vec<ResultInput>,
    polls: Option<(&Name, NodeId)>,
) -> Result<Vec<Accepted>, EngineError> {
    let names: Vec<String> = results.iter().map(|result| result.execution_id.clone()).collect();
    let owners = Owners::of(engine, call, &results, polls).await?;
    let records = records_of(engine, call, &results).await?;
    let judged = results
        .into_iter()
        .map(|result| judge(engine, call, result, &owners, &records, polls));
    let judged: Vec<Result<Ending, Refused>> = judged.collect();
    let mut endings = Vec::with_capacity(judged.len());
    let refused: Vec<Option<Refused>> = judged
        .into_iter()
        .map(|item| item.map(|ending| endings.push(ending)).err())
        .collect();
    let mut answers = finish::bring(engine, call, &endings).await?.into_iter().zip(&endings);
    let mut taken = Vec::with_capacity(names.len());
    for (execution_id, refused) in names.into_iter().zip(refused) {
        let refused = match refused {
            Some(refused) => Some(refused),
            None => match answers.next() {
                Some((Err(rejected), ending)) => Some(why_refused(engine, call, rejected, ending).await?),
                _ => None,
            },
        };
        let (status, message) = match refused {
            None => (AcceptedStatus::Accepted, None),
            Some(Refused(AcceptedStatus::Repeat, _)) => (AcceptedStatus::Repeat, None),
            Some(Refused(status, message)) => (status, Some(message)),
        };
        taken.push(Accepted {
            execution_id,
            status,
            message,
        });
    }
    Ok(taken)
}

/// Which agent each session belongs to.
struct Owners(HashMap<NodeId, Name>);

impl Owners {
    /// Reads the agents, unless every result is of the session that polls.
    async fn of(
        engine: &Engine,
        call: &Call,
        results: &[ResultInput],
        polls: Option<(&Name, NodeId)>,
    ) -> Result<Owners, EngineError> {
        let mut owners: HashMap<NodeId, Name> = HashMap::default();
        if let Some((agent, session)) = polls {
            owners.insert(session, agent.clone());
        }
        let is_known = |result: &ResultInput| {
            let token = result.lease_token.parse::<Token>();
            token.is_ok_and(|token| owners.contains_key(&token.session))
        };
        if results.iter().all(is_known) {
            return Ok(Owners(owners));
        }
        for agent in engine.store().agents(&call.namespace).await? {
            let sessions = agent.session.iter().chain(&agent.fenced);
            owners.extend(sessions.map(|session| (*session, agent.name.clone())));
        }
        Ok(Owners(owners))
    }
}

/// The tasks that results are of, as far as there are such and this process does not remember their runs.
async fn records_of(
    engine: &Engine,
    call: &Call,
    results: &[ResultInput],
) -> Result<HashMap<TaskId, TaskRecord>, EngineError> {
    let unknown = |result: &ResultInput| {
        let task = result.execution_id.parse::<ExecutionId>().ok()?.task;
        let lease = result.lease_token.parse::<Token>().ok()?.lease;
        let known = engine.inner_agents().runs.get(lease, &call.namespace, task);
        known.is_none().then_some(task)
    };
    let tasks: Vec<TaskId> = results.iter().filter_map(unknown).collect();
    if tasks.is_empty() {
        return Ok(HashMap::default());
    }
    let found = engine.store().some_tasks(&call.namespace, &tasks).await?;
    Ok(found.into_iter().flatten().map(|record| (record.id, record)).collect())
}

/// What a result asks to be stored, or why it cannot be.
fn judge(
    engine: &Engine,
    call: &Call,
    result: ResultInput,
    owners: &Owners,
    records: &HashMap<TaskId, TaskRecord>,
    polls: Option<(&Name, NodeId)>,
) -> Result<Ending, Refused> {
    let invalid = |message: String| Err(Refused(AcceptedStatus::Invalid, message));
    let execution: ExecutionId = match result.execution_id.parse() {
        Ok(execution) => execution,
        Err(wrong) => return invalid(wrong),
    };
    let token: Token = match result.lease_token.parse() {
        Ok(token) => token,
        Err(wrong) => return invalid(format!("lease_token: {wrong}")),
    };
    let agent = owners.0.get(&token.session);
    if let (Some((polling, _)), Some(agent)) = (polls, agent)
        && polling != agent
    {
        let message = format!("execution {execution} was given to agent `{agent}`, not to `{polling}`");
        return invalid(message);
    }
    let outcome = match outcome::read(&result.outcome, engine.now()) {
        Ok(outcome) => outcome,
        Err(wrong) => return invalid(wrong),
    };
    let known = engine
        .inner_agents()
        .runs
        .get(token.lease, &call.namespace, execution.task);
    let read = || {
        records
            .get(&execution.task)
            .map(|record| Arc::new(Run::of(&call.namespace, record)))
    };
    let Some(run) = known.or_else(read) else {
        let gone = format!("there is no task {}; it was deleted", execution.task);
        return Err(Refused(AcceptedStatus::LeaseLost, gone));
    };
    if let Some((_, session)) = run.lease.filter(|(lease, _)| *lease == token.lease) {
        if session != token.session {
            return invalid("lease_token: was altered; send back the one that came with the task".to_owned());
        }
        if run.attempt != execution.attempt {
            let attempt = run.attempt;
            return invalid(format!("the lease token is of attempt {attempt}, not of {execution}"));
        }
    }
    let last = Last {
        usage: result.usage,
        logs: result.logs,
        progress: result.progress,
    };
    let mut ending = Ending::new(engine, execution, token, run, outcome, last);
    ending.agent = agent.cloned();
    Ok(ending)
}

/// Why the store did not take a result.
async fn why_refused(
    engine: &Engine,
    call: &Call,
    rejected: Rejected,
    ending: &Ending,
) -> Result<Refused, EngineError> {
    let message = rejected.to_string();
    match rejected {
        Rejected::LeaseLost(_) if is_repeat(engine, call, ending).await? => {
            Ok(Refused(AcceptedStatus::Repeat, message))
        }
        Rejected::LeaseLost(_) | Rejected::NotFound(_) => Ok(Refused(AcceptedStatus::LeaseLost, message)),
        _ => Ok(Refused(AcceptedStatus::Invalid, message)),
    }
}

/// True when the history says that this run of this agent ended just so.
async fn is_repeat(engine: &Engine, call: &Call, ending: &Ending) -> Result<bool, EngineError> {
    let ExecutionId { task, attempt } = ending.execution;
    let Some(agent) = &ending.agent else { return Ok(false) };
    let executions = engine.store().executions(&call.namespace, task).await?;
    let Some(execution) = executions.into_iter().find(|execution| execution.attempt == attempt) else {
        return Ok(false);
    };
    // An attempt that goes on has no other executor on record than the next one.
    if execution.finished_at.is_some() && execution.executor_id != **agent {
        return Ok(false);
    }
    let events = engine.store().events(&call.namespace, task).await?;
    let mut ends = events
        .iter()
        .filter(|event| event.attempt == attempt && RUN_ENDS.contains(&event.kind));
    // Of several runs of the attempt, the end of this one is the first after its claim.
    let end = match ending.claimed_at {
        Some(claimed_at) => ends.find(|event| event.at >= claimed_at),
        None => ends.next_back(),
    };
    // Nobody reported what ended with its lease: because of a cancel, as one crash too many, or with the process that accepted
    // the task.
    let error = execution.error.as_ref();
    let went_with_process = error.is_some_and(|error| error.kind == kinds::PROCESS_ENDED);
    let went_with_lease = execution.status == ExecutionStatus::Crashed || went_with_process;
    let is_own = |end: EventKind| {
        let may_be_of_lease = matches!(end, EventKind::Cancelled | EventKind::Failed);
        !(may_be_of_lease && went_with_lease)
    };
    Ok(end.is_some_and(|end| is_own(end.kind) && is_end_of(end.kind, &ending.finish.outcome)))
}

/// Whether an outcome can have come to this end. Whoever was asked to stop ends as cancelled, unless it says that it is done.
fn is_end_of(end: EventKind, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done(_) => end == EventKind::Completed,
        _ if end == EventKind::Cancelled => true,
        Outcome::Again { .. } => end == EventKind::Again,
        // What it waits for may have been there already.
        Outcome::Wait { .. } => matches!(end, EventKind::Waiting | EventKind::Again),
        Outcome::Yielded { .. } => end == EventKind::Yielded,
        Outcome::Retry { .. } => matches!(end, EventKind::Retrying | EventKind::Failed),
        Outcome::Fail(_) => end == EventKind::Failed,
        Outcome::Cancelled => false,
        Outcome::Released => end == EventKind::Released,
    }
}
