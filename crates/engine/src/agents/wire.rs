//! What agents send and are answered, apart from outcomes.

use pensum_core::Json;
use pensum_core::input::{Invalid, Problem};
use pensum_core::outcome::Progress;
use pensum_core::store::{LOG_LINES_MAX, LogStream};
use pensum_core::view::TaskView;
use pensum_core::{ErrorInfo, Time};
use serde::{Deserialize, Serialize};

/// Longest name of a session, in characters.
pub(super) const SESSION_MAX: usize = 200;
/// Most tasks that one poll gives.
pub(super) const POLL_TASKS_MAX: usize = 1_000;
/// Longest that a poll waits for a task, in milliseconds.
pub(super) const POLL_WAIT_MS_MAX: u64 = 30_000;
/// Most results in one request.
pub(super) const RESULTS_MAX: usize = 1_000;
/// Most executions that one request names as running.
pub(super) const EXECUTIONS_MAX: usize = pensum_core::agent::AGENT_SLOTS_MAX as usize;

/// An agent asks for work, and brings results.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PollInput {
    /// Names the process that polls, 1 to 200 characters: another one with each start of the agent. A new session takes
    /// over from the one before it.
    pub session: String,
    /// How many tasks at most, 1 to 1,000; 1 by default.
    #[serde(default = "one")]
    pub max: usize,
    /// How long to wait for a task where there is none, in milliseconds, 0 to 30,000; 0 by default.
    #[serde(default)]
    pub wait_ms: u64,
    /// The executions that the agent knows that it has. Whatever else its session holds is given again.
    #[serde(default)]
    pub have: Vec<String>,
    /// How runs ended, at most 1,000. They are stored before anything new is given.
    #[serde(default)]
    pub results: Vec<ResultInput>,
}

const fn one() -> usize {
    1
}

/// How a run ended.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResultInput {
    /// The execution.
    pub execution_id: String,
    /// The token that came with the task.
    pub lease_token: String,
    /// What came of it, as an object with one field: `{"done": any}`, `{"again": {after, checkpoint}}`, `{"wait": {children:
    /// true | signal, timeout | until, checkpoint}}`, `{"yielded": {checkpoint}}`, `{"retry": {message, type, after}}`,
    /// `{"fail": {message, type}}`, `{"cancelled": {}}` or `{"released": {}}`. At most 1 MiB.
    #[schema(value_type = Object)]
    pub outcome: Json,
    /// What the run used.
    #[serde(default)]
    pub usage: Option<UsageInput>,
    /// Lines for the task's log that were not sent yet.
    #[serde(default)]
    pub logs: Vec<LogInput>,
    /// The last progress that was not sent yet.
    #[serde(default)]
    pub progress: Option<ProgressInput>,
}

/// What a run used, as far as it was measured.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UsageInput {
    /// Processor time, user and system, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Mean share of one processor, in percent; from `cpu_seconds` by default.
    pub cpu_percent: Option<f64>,
    /// Peak resident memory in MB (10⁶ bytes).
    pub memory_mb: Option<f64>,
    /// Read from storage, in MB (10⁶ bytes).
    pub read_mb: Option<f64>,
    /// Written to storage, in MB (10⁶ bytes).
    pub written_mb: Option<f64>,
    /// From start to end, in seconds; by the server's clock by default.
    pub wall_seconds: Option<f64>,
}

/// A line for a task's log.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogInput {
    /// The line; longer ones than 8 KiB are cut.
    pub message: String,
    /// Where it comes from; `log` by default.
    #[serde(default)]
    pub stream: Option<LogStream>,
    /// When it was said; when it arrived by default.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub at: Option<Time>,
}

/// How far a run is.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProgressInput {
    /// 0 to 100; what is beyond is taken for the nearer end.
    pub percent: f64,
    /// What it is doing.
    #[serde(default)]
    pub message: Option<String>,
}

impl From<ProgressInput> for Progress {
    fn from(said: ProgressInput) -> Progress {
        // The rules of other messages of a run: no NUL, and a length that a list can show.
        let message = said.message.map(|message| ErrorInfo::new("", message).message);
        Progress {
            percent: said.percent.clamp(0.0, 100.0),
            message,
        }
    }
}

/// Tasks for an agent, and what became of its results.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Polled {
    /// Tasks to run now; empty when there is none, and when a newer poll of the session took over.
    pub tasks: Vec<Given>,
    /// What became of each result, in order.
    pub accepted: Vec<Accepted>,
    /// The agent is given nothing more: it should end once what it has is done.
    pub drain: bool,
}

/// A task that an agent is to run.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Given {
    /// The task.
    pub task: TaskView,
    /// The attempt of it, to be named with whatever is said of this run.
    pub execution_id: String,
    /// Proves that the run is this agent's; to be sent back as it is.
    pub lease_token: String,
    /// When the lease ends, unless a heartbeat comes before.
    #[schema(value_type = String)]
    pub lease_expires_at: Time,
    /// What an earlier run of the attempt, or an earlier attempt, left.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub checkpoint: Option<Json>,
}

/// What became of one result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Accepted {
    /// The execution, as it was named.
    pub execution_id: String,
    /// What became of it.
    pub status: AcceptedStatus,
    /// Why it was not accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What became of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AcceptedStatus {
    /// It is stored.
    Accepted,
    /// The same end was stored before; nothing was changed.
    Repeat,
    /// The run is not this agent's any more; nothing was changed.
    LeaseLost,
    /// It cannot be stored, whenever it is sent; nothing was changed.
    Invalid,
}

/// An agent says that it lives, and what happened in its runs.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatInput {
    /// The session that polls; where it is named, a session that was replaced is refused.
    #[serde(default)]
    pub session: Option<String>,
    /// The runs whose leases to renew, at most 10,000.
    #[serde(default)]
    pub executions: Vec<BeatInput>,
}

/// A run that goes on.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeatInput {
    /// The execution.
    pub execution_id: String,
    /// The token that came with the task.
    pub lease_token: String,
    /// How far it is, where that changed.
    #[serde(default)]
    pub progress: Option<ProgressInput>,
    /// What it has used so far: recorded where this heartbeat ends the run because of its timeout.
    #[serde(default)]
    pub usage: Option<UsageInput>,
    /// Lines for the task's log that were not sent yet.
    #[serde(default)]
    pub logs: Vec<LogInput>,
    /// State for the next run, where it is to be saved: any JSON of at most 1 MiB.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub checkpoint: Option<Json>,
}

/// What an agent learns in return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Heard {
    /// Executions to stop: somebody cancelled their tasks.
    pub cancel: Vec<String>,
    /// Executions to interrupt with a checkpoint, as `yielded`: somebody paused their tasks.
    pub pause: Vec<String>,
    /// Executions that are not this agent's any more, or took longer than their timeout: to be stopped without a result.
    pub lost: Vec<String>,
    /// The agent is given nothing more: it should end once what it has is done.
    pub drain: bool,
    /// When the renewed leases end.
    #[schema(value_type = String)]
    pub lease_expires_at: Time,
}

/// Collects what is wrong with the values of a request.
#[derive(Default)]
pub(super) struct Faults(Vec<Problem>);

impl Faults {
    pub(super) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem {
            path: path.into(),
            message: message.into(),
        });
    }

    pub(super) fn count(&mut self, path: &str, count: usize, most: usize) {
        if count > most {
            self.add(path, format!("holds {count} items, the most is {most}"));
        }
    }

    pub(super) fn session(&mut self, session: &str) {
        if !(1..=SESSION_MAX).contains(&session.chars().count()) {
            self.add("session", format!("must be 1 to {SESSION_MAX} characters long"));
        } else if session.chars().any(char::is_control) {
            self.add("session", "must not contain control characters");
        }
    }

    pub(super) fn usage(&mut self, path: &str, usage: Option<UsageInput>) {
        let usage = usage.unwrap_or_default();
        for (field, value) in [
            ("cpu_seconds", usage.cpu_seconds),
            ("cpu_percent", usage.cpu_percent),
            ("memory_mb", usage.memory_mb),
            ("read_mb", usage.read_mb),
            ("written_mb", usage.written_mb),
            ("wall_seconds", usage.wall_seconds),
        ] {
            if value.is_some_and(|value| !value.is_finite() || value < 0.0) {
                self.add(format!("{path}.usage.{field}"), "must be zero or more");
            }
        }
    }

    pub(super) fn logs(&mut self, path: &str, logs: &[LogInput], now: Time) {
        self.count(&format!("{path}.logs"), logs.len(), LOG_LINES_MAX as usize);
        let far = pensum_core::time::DURATION_MAX;
        let is_far = |at: Time| at > now.plus(far) || at < now.minus(far);
        for (index, line) in logs.iter().enumerate() {
            if line.at.is_some_and(is_far) {
                self.add(format!("{path}.logs[{index}].at"), "is more than ten years away");
            }
        }
    }

    pub(super) fn finish(self) -> Result<(), Invalid> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Invalid(self.0)),
        }
    }
}

/// What is there is there, also when it is null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}
