//! Outcomes as agents write them: an object with one field, whose name says what it is.

use std::collections::BTreeMap;

use pensum_core::id::clip;
use pensum_core::input::NAME_MAX;
use pensum_core::json::JSON_MAX;
use pensum_core::time::Span;
use pensum_core::{ErrorInfo, Json, Name, Outcome, Time, Wait, input};
use serde::de::DeserializeOwned;

use crate::kinds;

/// What an outcome may be called.
const NAMES: &str = "done, again, wait, yielded, retry, fail, cancelled or released";

/// Reads an outcome.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(super) fn read(outcome: &Json, now: Time) -> Result<Outcome, String> {
    let bytes = outcome.get().len();
    if bytes > JSON_MAX {
        return Err(format!("the outcome has {bytes} bytes; the most is {JSON_MAX}"));
    }
    let mut said: BTreeMap<String, Json> = input::parse_object(outcome.get().as_bytes())
        .map_err(|wrong| format!("the outcome {wrong}; write an object with one of {NAMES}"))?;
    let (Some((name, value)), true) = (said.pop_first(), said.is_empty()) else {
        return Err(format!("the outcome must have one field: {NAMES}"));
    };
    if name == "done" {
        return match value.problem() {
            None => Ok(Outcome::Done(value)),
            Some(problem) => Err(format!("done: {problem}")),
        };
    }
    let mut fields = Fields::of(&name, &value)?;
    let outcome = match &*name {
        "again" => Outcome::Again {
            after: fields.take::<Span>("after")?.unwrap_or_default().0,
            checkpoint: fields.checkpoint()?,
        },
        "wait" => wait(&mut fields, now)?,
        "yielded" => Outcome::Yielded {
            checkpoint: fields.checkpoint()?,
        },
        "retry" => Outcome::Retry {
            error: fields.error()?,
            after: fields.take::<Span>("after")?.map(|after| after.0),
        },
        "fail" => Outcome::Fail(fields.error()?),
        "cancelled" => Outcome::Cancelled,
        "released" => Outcome::Released,
        other => return Err(format!("`{}` is no outcome; write {NAMES}", clip(other))),
    };
    fields.finish()?;
    Ok(outcome)
}

fn wait(fields: &mut Fields<'_>, now: Time) -> Result<Outcome, String> {
    let children = fields.take::<bool>("children")?.unwrap_or_default();
    let signal = fields.take::<String>("signal")?;
    let until = fields.take::<Json>("until")?;
    let seconds = fields.take::<Span>("seconds")?;
    let timeout = fields.take::<Span>("timeout")?;
    let checkpoint = fields.checkpoint()?;
    if timeout.is_some() && signal.is_none() {
        return Err("wait.timeout: only a wait for a signal has one".to_owned());
    }
    let on = match (children, signal, until, seconds) {
        (true, None, None, None) => Wait::Children,
        (false, Some(name), None, None) => Wait::Signal {
            name: signal_name(&name)?,
            until: timeout.map(|timeout| now.plus(timeout.0)),
        },
        (false, None, Some(until), None) => Wait::Until(point(&until, now)?),
        (false, None, None, Some(seconds)) => Wait::Until(now.plus(seconds.0)),
        _ => return Err("wait: needs one of children (true), signal, until and seconds".to_owned()),
    };
    Ok(Outcome::Wait { on, checkpoint })
}

fn signal_name(name: &str) -> Result<Name, String> {
    if !(1..=NAME_MAX).contains(&name.chars().count()) || name.contains('\0') {
        return Err(format!("wait.signal: must be 1 to {NAME_MAX} characters long"));
    }
    Ok(name.into())
}

/// A time, or a duration from now on.
fn point(until: &Json, now: Time) -> Result<Time, String> {
    if let Ok(span) = until.to::<Span>() {
        return Ok(now.plus(span.0));
    }
    let far = pensum_core::time::DURATION_MAX;
    match until.to::<Time>() {
        Ok(time) if time > now.plus(far) => Err("wait.until: is more than ten years away".to_owned()),
        Ok(time) => Ok(time),
        Err(_) => Err("wait.until: must be an RFC 3339 time or a number of seconds".to_owned()),
    }
}

/// The fields of what an outcome says.
struct Fields<'a> {
    of: &'a str,
    values: BTreeMap<String, Json>,
}

impl Fields<'_> {
    fn of<'a>(of: &'a str, value: &Json) -> Result<Fields<'a>, String> {
        let values = input::parse_object(value.get().as_bytes()).map_err(|wrong| format!("{of}: {wrong}"))?;
        Ok(Fields { of, values })
    }

    /// A field that may be absent, or null.
    fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, String> {
        let Some(value) = self.values.remove(field) else {
            return Ok(None);
        };
        input::parse(value.get().as_bytes()).map_err(|wrong| format!("{}.{field}: {wrong}", self.of))
    }

    /// The checkpoint to keep; null is one too.
    fn checkpoint(&mut self) -> Result<Option<Json>, String> {
        let checkpoint = self.values.remove("checkpoint");
        match checkpoint.as_ref().and_then(Json::problem) {
            None => Ok(checkpoint),
            Some(problem) => Err(format!("{}.checkpoint: {problem}", self.of)),
        }
    }

    fn error(&mut self) -> Result<ErrorInfo, String> {
        let message = self.take::<String>("message")?;
        let message = message.ok_or_else(|| format!("{}.message: is required", self.of))?;
        let kind = self.take::<String>("type")?.unwrap_or_else(|| kinds::FAILED.to_owned());
        let is_label = !kind.trim().is_empty() && !kind.chars().any(char::is_control);
        if !is_label || kind.chars().count() > NAME_MAX {
            return Err(format!(
                "{}.type: must be 1 to {NAME_MAX} characters without control characters",
                self.of
            ));
        }
        Ok(ErrorInfo::new(kind, message))
    }

    fn finish(self) -> Result<(), String> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(format!("{}: unknown field `{}`", self.of, clip(unknown))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Time = Time::from_micros(1_767_225_600_000_000);

    #[track_caller]
    fn check(text: &str, wanted: Outcome) {
        assert_eq!(read(&Json::parse(text.to_owned()).unwrap(), NOW), Ok(wanted), "{text}");
    }

    #[track_caller]
    fn check_wrong(text: &str, part: &str) {
        let wrong = read(&Json::parse(text.to_owned()).unwrap(), NOW).unwrap_err();
        assert!(wrong.contains(part), "{text}: {wrong}");
    }

    fn json(text: &str) -> Json {
        Json::parse(text.to_owned()).unwrap()
    }

    fn later(seconds: u64) -> Time {
        NOW.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn every_outcome_is_read() {
        check(r#"{"done":null}"#, Outcome::Done(Json::null()));
        check(r#"{"done":{"a":[1]}}"#, Outcome::Done(json(r#"{"a":[1]}"#)));
        let again = |after, checkpoint| Outcome::Again {
            after: Duration::from_secs(after),
            checkpoint,
        };
        check(r#"{"again":{}}"#, again(0, None));
        check(r#"{"again":{"after":"1m","checkpoint":7}}"#, again(60, Some(json("7"))));
        check(
            r#"{"again":{"after":1,"checkpoint":null}}"#,
            again(1, Some(Json::null())),
        );
        check(
            r#"{"yielded":{"checkpoint":"x"}}"#,
            Outcome::Yielded {
                checkpoint: Some(json("\"x\"")),
            },
        );
        let error = |kind: &str| ErrorInfo::new(kind, "no");
        let retry = |kind, after: Option<u64>| Outcome::Retry {
            error: error(kind),
            after: after.map(Duration::from_secs),
        };
        check(r#"{"retry":{"message":"no"}}"#, retry("failed", None));
        check(
            r#"{"retry":{"message":"no","type":"Busy","after":5}}"#,
            retry("Busy", Some(5)),
        );
        check(
            r#"{"fail":{"message":"no","type":null}}"#,
            Outcome::Fail(error("failed")),
        );
        check(r#"{"cancelled":{}}"#, Outcome::Cancelled);
        check(r#"{"released":{}}"#, Outcome::Released);
    }

    #[test]
    fn a_wait_is_for_one_thing() {
        let wait = |on| Outcome::Wait { on, checkpoint: None };
        let signal = |until| Wait::Signal {
            name: "go".into(),
            until,
        };
        check(r#"{"wait":{"children":true}}"#, wait(Wait::Children));
        check(r#"{"wait":{"signal":"go"}}"#, wait(signal(None)));
        check(
            r#"{"wait":{"signal":"go","timeout":"1h"}}"#,
            wait(signal(Some(later(3_600)))),
        );
        check(r#"{"wait":{"until":90}}"#, wait(Wait::Until(later(90))));
        check(r#"{"wait":{"until":"2m"}}"#, wait(Wait::Until(later(120))));
        check(r#"{"wait":{"seconds":1}}"#, wait(Wait::Until(later(1))));
        let time = Time::parse("2026-02-01T00:00:00Z").unwrap();
        check(r#"{"wait":{"until":"2026-02-01T00:00:00Z"}}"#, wait(Wait::Until(time)));
        check(
            r#"{"wait":{"children":true,"checkpoint":[]}}"#,
            Outcome::Wait {
                on: Wait::Children,
                checkpoint: Some(json("[]")),
            },
        );
        for text in [
            r#"{"wait":{}}"#,
            r#"{"wait":{"children":false}}"#,
            r#"{"wait":{"children":true,"signal":"x"}}"#,
            r#"{"wait":{"until":1,"seconds":1}}"#,
        ] {
            check_wrong(text, "needs one of");
        }
        check_wrong(r#"{"wait":{"children":true,"timeout":1}}"#, "wait.timeout: only a wait");
        check_wrong(r#"{"wait":{"signal":""}}"#, "wait.signal: must be 1 to 200");
        check_wrong(r#"{"wait":{"until":"soon"}}"#, "wait.until: must be");
        check_wrong(r#"{"wait":{"until":"9999-01-01T00:00:00Z"}}"#, "ten years");
        check_wrong(r#"{"wait":{"seconds":-1}}"#, "wait.seconds:");
    }

    #[test]
    fn whatever_else_is_named() {
        for text in ["null", "7", "\"done\"", "[]"] {
            check_wrong(text, "write an object with one of done");
        }
        check_wrong("{}", "must have one field");
        check_wrong(r#"{"done":1,"fail":{"message":"m"}}"#, "must have one field");
        check_wrong(r#"{"finished":{}}"#, "`finished` is no outcome");
        check_wrong(r#"{"finished":1}"#, "finished: ");
        check_wrong(r#"{"cancelled":null}"#, "cancelled: ");
        check_wrong(r#"{"cancelled":{"why":1}}"#, "cancelled: unknown field `why`");
        check_wrong(r#"{"fail":{}}"#, "fail.message: is required");
        check_wrong(r#"{"fail":{"message":7}}"#, "fail.message: ");
        check_wrong(r#"{"retry":{"message":"m","type":" "}}"#, "retry.type: must be");
        check_wrong(r#"{"retry":{"message":"m","after":"soon"}}"#, "retry.after: ");
        check_wrong(r#"{"done":"\u0000"}"#, "done: ");
        check_wrong(r#"{"again":{"checkpoint":"\u0000"}}"#, "again.checkpoint: ");
        let large = format!(r#"{{"done":"{}"}}"#, "x".repeat(JSON_MAX));
        check_wrong(&large, "the most is 1048576");
    }
}
