//! The settings of a queue.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::TITLE_MAX;
use super::check::Check;
use super::parse::{Invalid, optional_object};
use crate::id::clip;
use crate::queue::{AGEING_MIN, PER_KEY_MAX, QueueSettings, RATE_INTERVAL_MAX, Rate, WhenFull};
use crate::time::{DURATION_MAX, Span};
use crate::{Priority, RetryPolicy};

/// Most starts of a rate, and most that may start at once after a quiet time.
pub const RATE_STARTS_MAX: u32 = 1_000_000;

/// What a queue allows, and what its tasks get that do not say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueInput {
    /// A name for people; the queue's id by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many of its tasks run at once, on all nodes together, 1 or more; as many as there are slots by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// How many tasks of one key run at once, on all nodes together, when one of this queue is among them: 1 to 10,000. One by
    /// default. Of a key with tasks in several queues the narrowest counts, of those that run and the one that is to start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_per_key: Option<u32>,
    /// False: its tasks start only when somebody asks for it with `process`. True by default.
    pub auto_start: bool,
    /// False: its tasks are not durable. Accepting one does not wait for the disk, and it is cancelled when the process that
    /// accepted it ends. True by default.
    pub persistent: bool,
    /// How many of its tasks start within a time, on all nodes together: `{starts, per, burst}`, or text such as "50/s".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateInput>,
    /// How many tasks may wait in it, 1 or more: those that have not ended and do not run. As many as there are by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_depth: Option<u32>,
    /// How long its oldest ready task may have waited, in seconds; as long as it takes by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub max_age: Option<Span>,
    /// What happens at `max_depth` and over `max_age`: `refuse`, which is the default, answers a submission with 429;
    /// `drop_oldest` takes the new task and cancels those that have been ready longest.
    #[serde(skip_serializing_if = "WhenFull::is_refuse")]
    pub when_full: WhenFull,
    /// The priority of tasks that name none: low, normal, high, urgent, critical, or 1 to 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub priority: Option<Priority>,
    /// The timeout of tasks that name none, in seconds; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub timeout: Option<Span>,
    /// The retries of tasks that name no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// The delays between attempts of tasks that name none.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "optional_object")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<RetryPolicy>,
    /// In seconds, 1 or more: a ready task that has waited for so long starts as if it had the next higher priority, after
    /// twice the time as if it had the one above, up to critical. Its own priority stays. Nobody rises by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub ageing: Option<Span>,
    /// True: the keys of its tasks take turns. Among tasks of one priority, a key whose task has run goes behind what is
    /// ready then. False by default: the oldest task starts first, whatever its key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fair: bool,
}

impl Default for QueueInput {
    fn default() -> QueueInput {
        QueueInput::from(QueueSettings::default())
    }
}

/// How many tasks start within a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct RateInput {
    /// How many starts, 1 to 1,000,000.
    pub starts: u32,
    /// In which time, in seconds; 1 s by default.
    #[schema(value_type = Option<f64>)]
    pub per: Span,
    /// How many may start at once after a quiet time, 1 to 1,000,000. By default as many as start in a second at the full
    /// rate, and at least 1. With fewer, a rate of many a second is not reached: whatever falls due between two claims is
    /// lost beyond the burst, and claims are some milliseconds apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

impl RateInput {
    /// Parses `50/s`, `100/m`, `10/h`, `3/90s`.
    ///
    /// # Errors
    /// A sentence that says what was expected.
    pub fn parse(text: &str) -> Result<RateInput, String> {
        let wrong = || {
            let text = clip(text);
            format!("`{text}` is not a rate: write starts per time, such as 50/s, 100/m or 10/h")
        };
        let (starts, per) = text.split_once('/').ok_or_else(wrong)?;
        let per = per.trim();
        let per = match per.starts_with(|c: char| c.is_ascii_alphabetic()) {
            true => Span::parse(&format!("1{per}")),
            false => Span::parse(per),
        };
        Ok(RateInput {
            starts: starts.trim().parse().map_err(|_| wrong())?,
            per: per.map_err(|_| wrong())?,
            burst: None,
        })
    }

    /// The burst of a rate that names none: as many as start in a second, and at least 1.
    pub fn burst_default(self) -> u32 {
        let a_second = f64::from(self.starts) / self.per.0.as_secs_f64();
        // A cast of a float to an integer saturates.
        (a_second as u32).clamp(1, RATE_STARTS_MAX)
    }

    fn resolve(self, check: &mut Check) -> Rate {
        let before = check.problems.len();
        let most = RATE_STARTS_MAX;
        if !(1..=most).contains(&self.starts) {
            check.fail(
                "rate_limit.starts",
                format!("must be 1 to {most}; pause the queue to start nothing"),
            );
        }
        if self.burst.is_some_and(|burst| !(1..=most).contains(&burst)) {
            check.fail("rate_limit.burst", format!("must be 1 to {most}"));
        }
        if self.per.0.is_zero() {
            check.fail("rate_limit.per", "must be longer than zero");
        }
        if check.problems.len() > before {
            return Rate {
                starts: 1,
                per: Span(std::time::Duration::from_secs(1)),
                burst: 1,
            };
        }
        let burst = self.burst.unwrap_or_else(|| self.burst_default());
        let interval = self.per.0 / self.starts;
        if interval > RATE_INTERVAL_MAX {
            let days = RATE_INTERVAL_MAX.as_secs() / 86_400;
            check.fail(
                "rate_limit.per",
                format!("is more than {days} days from one start to the next"),
            );
        } else if interval.as_micros() == 0 {
            check.fail(
                "rate_limit.per",
                format!("is more than {most} starts a second; leave the rate out for none"),
            );
        } else if interval.saturating_mul(burst) > DURATION_MAX {
            check.fail(
                "rate_limit.burst",
                "would take more than ten years to fill again; choose a smaller one",
            );
        }
        Rate {
            starts: self.starts,
            per: self.per,
            burst,
        }
    }
}

impl From<Rate> for RateInput {
    fn from(rate: Rate) -> RateInput {
        RateInput {
            starts: rate.starts,
            per: rate.per,
            burst: Some(rate.burst),
        }
    }
}

impl<'de> Deserialize<'de> for RateInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RateInput, D::Error> {
        /// The object form.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            starts: u32,
            #[serde(default = "second")]
            per: Span,
            #[serde(default)]
            burst: Option<u32>,
        }
        const fn second() -> Span {
            Span(std::time::Duration::from_secs(1))
        }
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = RateInput;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate: {starts, per, burst}, or text such as \"50/s\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RateInput, E> {
                RateInput::parse(text).map_err(E::custom)
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<RateInput, A::Error> {
                let Whole { starts, per, burst } =
                    Whole::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(RateInput { starts, per, burst })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl QueueInput {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn resolve(self) -> Result<QueueSettings, Invalid> {
        let mut check = Check::default();
        check.text("name", self.name.as_deref(), TITLE_MAX);
        if self.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
            check.fail("name", "must not be empty; leave it out for the queue's id");
        }
        if self.max_concurrent == Some(0) {
            check.fail("max_concurrent", "must be 1 or more; pause the queue to start nothing");
        }
        if self
            .max_concurrent_per_key
            .is_some_and(|most| !(1..=PER_KEY_MAX).contains(&most))
        {
            check.fail("max_concurrent_per_key", format!("must be 1 to {PER_KEY_MAX}"));
        }
        if self.ageing.is_some_and(|ageing| ageing.0 < AGEING_MIN) {
            let least = AGEING_MIN.as_secs();
            check.fail("ageing", format!("must be at least {least} s; leave it out for none"));
        }
        if self.max_depth == Some(0) {
            check.fail("max_depth", "must be 1 or more; leave it out for no limit");
        }
        check.positive("max_age", self.max_age);
        if !self.when_full.is_refuse() && self.max_depth.is_none() && self.max_age.is_none() {
            check.fail(
                "when_full",
                "says nothing without max_depth or max_age; give one of them",
            );
        }
        check.retries(self.max_retries);
        if let Some(retry) = &self.retry {
            check.retry(retry);
        }
        let rate = self.rate_limit.map(|rate| rate.resolve(&mut check));
        check.done()?;
        Ok(QueueSettings {
            title: self.name,
            max_concurrent: self.max_concurrent,
            max_concurrent_per_key: self.max_concurrent_per_key,
            auto_start: self.auto_start,
            persistent: self.persistent,
            rate,
            max_depth: self.max_depth,
            max_age: self.max_age,
            when_full: self.when_full,
            priority: self.priority,
            timeout: self.timeout,
            max_retries: self.max_retries,
            retry: self.retry,
            ageing: self.ageing,
            fair: self.fair,
        })
    }
}

/// The settings as their author would have written them.
impl From<QueueSettings> for QueueInput {
    fn from(settings: QueueSettings) -> QueueInput {
        QueueInput {
            name: settings.title,
            max_concurrent: settings.max_concurrent,
            max_concurrent_per_key: settings.max_concurrent_per_key,
            auto_start: settings.auto_start,
            persistent: settings.persistent,
            rate_limit: settings.rate.map(RateInput::from),
            max_depth: settings.max_depth,
            max_age: settings.max_age,
            when_full: settings.when_full,
            priority: settings.priority,
            timeout: settings.timeout,
            max_retries: settings.max_retries,
            retry: settings.retry,
            ageing: settings.ageing,
            fair: settings.fair,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::input::parse_object;

    fn read(text: &str) -> Result<QueueSettings, Invalid> {
        parse_object::<QueueInput>(text.as_bytes()).and_then(QueueInput::resolve)
    }

    #[track_caller]
    fn check(text: &str, problem: &str) {
        let found = read(text).unwrap_err().to_string();
        assert!(found.contains(problem), "{text}: {found:?} should say {problem:?}");
    }

    #[track_caller]
    fn check_rate(text: &str, starts: u32, per: f64, burst: u32) {
        let rate = read(&format!(r#"{{"rate_limit":{text}}}"#)).unwrap().rate.unwrap();
        let wanted = Rate {
            starts,
            per: Span(Duration::from_secs_f64(per)),
            burst,
        };
        assert_eq!(rate, wanted, "{text}");
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(read("{}").unwrap(), QueueSettings::default());
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        check(r#"{"max_concurrent":0}"#, "max_concurrent: must be 1 or more");
        check(r#"{"max_concurrent":-1}"#, "max_concurrent: invalid value");
        check(r#"{"max_concurrent":"many"}"#, "max_concurrent: invalid type");
        check(
            r#"{"max_concurrent_per_key":0}"#,
            "max_concurrent_per_key: must be 1 to 10000",
        );
        check(
            r#"{"max_concurrent_per_key":10001}"#,
            "max_concurrent_per_key: must be 1 to",
        );
        check(
            r#"{"max_concurrent_per_key":-1}"#,
            "max_concurrent_per_key: invalid value",
        );
        check(
            r#"{"max_concurrent_per_key":"a"}"#,
            "max_concurrent_per_key: invalid type",
        );
        check(r#"{"max_depth":0}"#, "max_depth: must be 1 or more");
        check(r#"{"max_depth":-5}"#, "max_depth: invalid value");
        check(r#"{"max_age":0}"#, "max_age: must be longer than zero");
        check(r#"{"max_age":"long"}"#, "max_age: `long` is not a duration");
        check(r#"{"max_depth":5,"when_full":"shrug"}"#, "when_full: unknown variant");
        check(r#"{"when_full":"drop_oldest"}"#, "when_full: says nothing without");
        check(r#"{"auto_start":"no"}"#, "auto_start: invalid type");
        check(r#"{"persistent":"no"}"#, "persistent: invalid type");
        check(r#"{"name":" "}"#, "name: must not be empty");
        check(r#"{"name":"a\u0000b"}"#, "name: contains the NUL");
        check(r#"{"priority":"huge"}"#, "priority: `huge` is not a priority");
        check(r#"{"timeout":"soon"}"#, "timeout: `soon` is not a duration");
        check(r#"{"ageing":0}"#, "ageing: must be at least 1 s");
        check(r#"{"ageing":"999ms"}"#, "ageing: must be at least 1 s");
        check(r#"{"ageing":"11 years"}"#, "ageing: `11 years` is not a duration");
        check(r#"{"fair":"yes"}"#, "fair: invalid type");
        check(r#"{"max_retries":1001}"#, "max_retries: must be 0 to 1000");
        check(r#"{"retry":{"factor":0}}"#, "retry.factor: must be 1 to 100");
        check(r#"{"retry":[]}"#, "retry: invalid type");
        check(r#"{"colour":1}"#, "colour: unknown field `colour`");
        check(r#"{"status":"open"}"#, "status: `status` is set by the engine");
        check("[]", "expected an object");
        let all = read(r#"{"max_concurrent":0,"name":" ","rate_limit":"0/s"}"#).unwrap_err();
        assert_eq!(all.0.len(), 3, "{all}");
    }

    #[test]
    fn a_rate_is_an_object_or_a_text() {
        check_rate(r#""50/s""#, 50, 1.0, 50);
        check_rate(r#""100/m""#, 100, 60.0, 1);
        check_rate(r#"" 10 / hour ""#, 10, 3600.0, 1);
        check_rate(r#""3/90s""#, 3, 90.0, 1);
        check_rate(r#""1000000/s""#, 1_000_000, 1.0, 1_000_000);
        check_rate(r#"{"starts":50,"burst":10}"#, 50, 1.0, 10);
        check_rate(r#"{"starts":300,"per":"1m"}"#, 300, 60.0, 5);
        check(r#"{"rate_limit":"fast"}"#, "rate_limit: `fast` is not a rate");
        check(r#"{"rate_limit":"-1/s"}"#, "is not a rate");
        check(r#"{"rate_limit":"5/parsec"}"#, "is not a rate");
        check(r#"{"rate_limit":5}"#, "rate_limit: invalid type");
        check(r#"{"rate_limit":{}}"#, "rate_limit.starts: missing field");
        check(
            r#"{"rate_limit":{"starts":5,"size":1}}"#,
            "rate_limit.size: unknown field",
        );
        check(r#"{"rate_limit":"0/s"}"#, "rate_limit.starts: must be 1 to 1000000");
        check(r#"{"rate_limit":{"starts":1000001}}"#, "rate_limit.starts");
        check(
            r#"{"rate_limit":{"starts":1,"burst":0}}"#,
            "rate_limit.burst: must be 1",
        );
        check(r#"{"rate_limit":{"starts":1,"burst":1000001}}"#, "rate_limit.burst");
        check(
            r#"{"rate_limit":{"starts":1,"per":0}}"#,
            "rate_limit.per: must be longer",
        );
        check(r#"{"rate_limit":"1/367d"}"#, "rate_limit.per: is more than 366 days");
        check(r#"{"rate_limit":"1001/1ms"}"#, "is more than 1000000 starts a second");
        check(
            r#"{"rate_limit":{"starts":1,"per":"1d","burst":5000}}"#,
            "rate_limit.burst: would take",
        );
    }

    #[test]
    fn settings_can_be_written_down_and_read_again() {
        let text = r#"{"name":"Mail","max_concurrent":3,"max_concurrent_per_key":2,"auto_start":false,"persistent":false,"rate_limit":{"starts":7,"per":60,"burst":2},
            "max_depth":8,"max_age":"1h","when_full":"drop_oldest",
            "priority":"high","timeout":0,"max_retries":0,"retry":{"strategy":"fixed","delay":4},
            "ageing":"5m","fair":true}"#;
        let settings = read(text).unwrap();
        let written = serde_json::to_string(&QueueInput::from(settings.clone())).unwrap();
        assert_eq!(read(&written).unwrap(), settings);
    }
}
