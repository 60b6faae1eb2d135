//! What an agent is given, and what it says in return.

use std::time::Duration;

use pensum_core::{ErrorInfo, Json, Outcome, Time};
use pensum_engine::kinds;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Most log lines that wait for the next heartbeat; further ones are counted.
const LINES_MAX: usize = 1_000;

/// The answer to a poll.
#[derive(Deserialize)]
pub(super) struct Polled {
    pub(super) tasks: Vec<Given>,
    #[serde(default)]
    pub(super) drain: bool,
}

/// A task to run.
#[derive(Clone, Deserialize)]
pub(super) struct Given {
    pub(super) task: Value,
    pub(super) execution_id: String,
    pub(super) lease_token: String,
    #[serde(default)]
    pub(super) checkpoint: Option<Value>,
}

impl Given {
    /// What the program reads.
    pub(super) fn input(&self) -> String {
        let mut task = self.task.clone();
        task["execution_id"] = json!(self.execution_id);
        task["checkpoint"] = self.checkpoint.clone().unwrap_or_default();
        format!("{task}\n")
    }

    /// How long it may run; `None` for as long as it takes.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let seconds = self.task["timeout"].as_f64().filter(|seconds| *seconds > 0.0)?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// The answer to a heartbeat.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Beaten {
    pub(super) cancel: Vec<String>,
    pub(super) pause: Vec<String>,
    pub(super) lost: Vec<String>,
    pub(super) drain: bool,
}

/// What a run has said since the last heartbeat.
#[derive(Default)]
pub(super) struct Said {
    lines: Vec<Value>,
    dropped: usize,
    progress: Option<Value>,
    checkpoint: Option<Value>,
}

/// A line on standard error that is a JSON object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    progress: Option<f64>,
    message: Option<String>,
    log: Option<String>,
    checkpoint: Option<Value>,
}

impl Said {
    /// Takes a line of standard error: a JSON object, a line of progress, or a line for the log.
    pub(super) fn take_line(&mut self, line: &str, now: Time) {
        if let Some((percent, message)) = pensum_engine::process::progress_of(line) {
            self.progress = Some(json!({ "percent": percent, "message": message }));
            return;
        }
        let Some(said) = line
            .starts_with('{')
            .then(|| serde_json::from_str::<Line>(line).ok())
            .flatten()
        else {
            return self.log(line, now);
        };
        let Line {
            progress,
            message,
            log,
            checkpoint,
        } = said;
        match (progress, message) {
            (Some(percent), message) => self.progress = Some(json!({ "percent": percent, "message": message })),
            (None, Some(message)) => self.log(&message, now),
            (None, None) => {}
        }
        if let Some(log) = log {
            self.log(&log, now);
        }
        if let Some(checkpoint) = checkpoint {
            match Json::from(checkpoint.clone()).problem() {
                None => self.checkpoint = Some(checkpoint),
                Some(problem) => self.log(&format!("a checkpoint cannot be kept: {problem}"), now),
            }
        }
    }

    fn log(&mut self, line: &str, now: Time) {
        if self.lines.len() >= LINES_MAX {
            self.dropped += 1;
            return;
        }
        self.lines
            .push(json!({ "message": line, "stream": "stderr", "at": now }));
    }

    /// What to send of it, which is then forgotten.
    pub(super) fn take(&mut self, into: &mut Value) {
        let mut lines = std::mem::take(&mut self.lines);
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            lines.push(
                json!({ "message": format!("{dropped} more lines came too fast and were dropped"), "stream": "log" }),
            );
        }
        if !lines.is_empty() {
            into["logs"] = Value::Array(lines);
        }
        if let Some(progress) = self.progress.take() {
            into["progress"] = progress;
        }
    }

    /// Keeps what could not be sent, before what was said since.
    pub(super) fn take_back(&mut self, mut unsent: Value) {
        if let Value::Array(mut lines) = unsent["logs"].take() {
            lines.append(&mut self.lines);
            self.dropped += lines.len().saturating_sub(LINES_MAX);
            lines.truncate(LINES_MAX);
            self.lines = lines;
        }
        for (newer, older) in [(&mut self.progress, "progress"), (&mut self.checkpoint, "checkpoint")] {
            if newer.is_none() {
                *newer = unsent.get_mut(older).map(Value::take);
            }
        }
    }

    /// The newest state to save, which is then forgotten.
    pub(super) fn take_checkpoint(&mut self) -> Option<Value> {
        self.checkpoint.take()
    }
}

/// The end of a run, as it is sent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ended {
    pub(super) execution_id: String,
    pub(super) lease_token: String,
    pub(super) outcome: Value,
    #[serde(flatten)]
    pub(super) rest: Value,
    /// The state that it saved last and that was not sent yet.
    #[serde(skip)]
    pub(super) checkpoint: Option<Value>,
}

impl Ended {
    /// How long it is as it is sent, in bytes.
    pub(super) fn size(&self) -> usize {
        let checkpoint = self
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.to_string().len());
        serde_json::to_string(self).map_or(0, |text| text.len()) + checkpoint
    }

    /// What to send instead of an end that no store can keep; `None` when that was sent already.
    pub(super) fn refused(self, why: &str) -> Option<Ended> {
        let kind = match self.outcome.get("done") {
            Some(_) => kinds::BAD_RESULT,
            None => kinds::BAD_OUTCOME,
        };
        let outcome = written(Outcome::Fail(ErrorInfo::new(kind, why)));
        let is_new = self.outcome["fail"]["type"] != outcome["fail"]["type"];
        is_new.then_some(Ended {
            outcome,
            rest: json!({}),
            ..self
        })
    }
}

/// An outcome as the wire has it.
pub(super) fn written(outcome: Outcome) -> Value {
    match outcome {
        Outcome::Done(result) => json!({ "done": result.value() }),
        Outcome::Retry { error, after } => {
            let after = after.map(|after| after.as_secs_f64());
            json!({ "retry": { "message": error.message, "type": error.kind, "after": after } })
        }
        Outcome::Fail(error) => json!({ "fail": { "message": error.message, "type": error.kind } }),
        Outcome::Cancelled => json!({ "cancelled": {} }),
        // A program's end says none of the others.
        _ => json!({ "released": {} }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Value) {
        let mut said = Said::default();
        said.take_line(line, Time::EPOCH);
        let mut found = json!({});
        let checkpoint = said.take_checkpoint();
        said.take(&mut found);
        for line in found
            .get_mut("logs")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            *line = line["message"].clone();
        }
        if let Some(checkpoint) = checkpoint {
            found["checkpoint"] = checkpoint;
        }
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn a_line_is_progress_a_checkpoint_or_words() {
        check("hello", json!({ "logs": ["hello"] }));
        check(
            "pensum:progress 40 half",
            json!({ "progress": { "percent": 40.0, "message": "half" } }),
        );
        check(
            r#"{"progress":12.5,"message":"x"}"#,
            json!({ "progress": { "percent": 12.5, "message": "x" } }),
        );
        check(
            r#"{"log":"x","checkpoint":{"at":3}}"#,
            json!({ "logs": ["x"], "checkpoint": { "at": 3 } }),
        );
        check(r#"{"message":"only"}"#, json!({ "logs": ["only"] }));
        check(r#"{"other":1}"#, json!({ "logs": [r#"{"other":1}"#] }));
        check("{broken", json!({ "logs": ["{broken"] }));
    }

    #[test]
    fn a_flood_of_lines_is_bounded_and_says_so() {
        let mut said = Said::default();
        for n in 0..LINES_MAX + 7 {
            said.take_line(&n.to_string(), Time::EPOCH);
        }
        let mut found = json!({});
        said.take(&mut found);
        let lines = found["logs"].as_array().unwrap();
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert_eq!(
            lines[LINES_MAX]["message"],
            "7 more lines came too fast and were dropped"
        );
    }

    #[test]
    fn a_state_that_no_store_can_keep_is_not_sent() {
        let problem = "a checkpoint cannot be kept: contains \\u0000, the NUL character, which cannot be stored";
        check(r#"{"checkpoint":"\u0000"}"#, json!({ "logs": [problem] }));
    }

    #[test]
    fn what_could_not_be_sent_comes_before_what_was_said_since() {
        let mut said = Said::default();
        said.take_line(r#"{"log":"first","checkpoint":1,"progress":10}"#, Time::EPOCH);
        let mut unsent = json!({ "execution_id": "x.1" });
        said.take(&mut unsent);
        unsent["checkpoint"] = said.take_checkpoint().unwrap();
        said.take_line(r#"{"log":"second","progress":20}"#, Time::EPOCH);
        said.take_back(unsent);
        let mut sent = json!({});
        assert_eq!(said.take_checkpoint(), Some(json!(1)));
        said.take(&mut sent);
        let lines = sent["logs"].as_array().unwrap();
        let words: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
        assert_eq!(
            (words, &sent["progress"]["percent"]),
            (vec!["first", "second"], &json!(20.0))
        );
    }

    #[test]
    fn an_end_that_is_refused_is_a_failure_once() {
        let ended = Ended {
            execution_id: "x.1".to_owned(),
            lease_token: "t".to_owned(),
            outcome: json!({ "done": 1 }),
            rest: json!({ "usage": {} }),
            checkpoint: None,
        };
        let refused = ended.refused("too long").unwrap();
        assert_eq!(refused.outcome["fail"]["type"], kinds::BAD_RESULT);
        let again = refused.refused("still").unwrap();
        assert_eq!(again.outcome["fail"]["type"], kinds::BAD_OUTCOME);
        assert!(again.refused("still").is_none());
    }

    #[test]
    fn an_outcome_is_written_as_the_wire_has_it() {
        let done = Outcome::Done(Json::from(json!({ "x": 1 })));
        assert_eq!(written(done), json!({ "done": { "x": 1 } }));
        assert_eq!(written(Outcome::Cancelled), json!({ "cancelled": {} }));
        assert_eq!(written(Outcome::Released), json!({ "released": {} }));
    }
}
