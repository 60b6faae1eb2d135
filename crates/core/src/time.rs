//! Points in time and human-friendly durations.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time: microseconds since 1970-01-01T00:00:00Z. Written and read as RFC 3339 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(i64);

impl Time {
    /// The Unix epoch.
    pub const EPOCH: Time = Time(0);
    /// Later than every time that can be written: "never" in orderings.
    pub const MAX: Time = Time(i64::MAX);

    /// From microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Time {
        Time(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the epoch, never negative.
    pub const fn as_millis(self) -> u64 {
        if self.0 < 0 { 0 } else { (self.0 / 1000) as u64 }
    }

    /// Seconds since the epoch.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// This time plus `duration`; stops at [`Time::MAX`].
    pub fn plus(self, duration: Duration) -> Time {
        Time(
            self.0
                .saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// This time minus `duration`.
    pub fn minus(self, duration: Duration) -> Time {
        Time(
            self.0
                .saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)),
        )
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    /// Parses RFC 3339, with any offset.
    ///
    /// # Errors
    /// A sentence that names the text and the form that is expected.
    pub fn parse(text: &str) -> Result<Time, String> {
        text.parse::<jiff::Timestamp>()
            .map(|t| Time(t.as_microsecond()))
            .map_err(|_| format!("`{text}` is not an RFC 3339 time such as 2026-01-31T09:30:00Z"))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(t) => t.fmt(f),
            Err(_) => f.write_str("9999-12-31T23:59:59Z"),
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Time::parse(&text).map_err(de::Error::custom)
    }
}

/// The longest duration that input may name: ten years. Longer ones are mistakes, and would overflow sums of times.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// A duration as users write it: seconds as a number (`90`, `0.5`) or words (`"1h 30m"`, `"250ms"`, `"2 days"`).
/// Written out as seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    /// Parses `"90"`, `"0.5"`, `"1h 30m"`, `"250ms"`, `"1d"`.
    ///
    /// # Errors
    /// A sentence that says what was expected.
    pub fn parse(text: &str) -> Result<Span, String> {
        let text = text.trim();
        if let Ok(seconds) = text.parse::<f64>() {
            return Span::from_seconds(seconds);
        }
        let wrong = || format!("`{text}` is not a duration: write seconds (90) or units (\"1h 30m\", \"250ms\")");
        let mut rest = text;
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            let after = rest[digits..].trim_start();
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let unit = match &after[..letters] {
                "ms" | "millisecond" | "milliseconds" => 0.001,
                "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
                "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
                "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
                "d" | "day" | "days" => 86_400.0,
                "w" | "week" | "weeks" => 604_800.0,
                _ => return Err(wrong()),
            };
            total = total.saturating_add(Span::from_seconds(number * unit)?.0);
            rest = after[letters..].trim_start_matches([' ', ',']);
        }
        if total > DURATION_MAX {
            Err(format!("`{text}` is longer than ten years"))
        } else {
            Ok(Span(total))
        }
    }

    /// From a number of seconds, which must be finite, not negative and at most ten years.
    ///
    /// # Errors
    /// A sentence that names the bound.
    pub fn from_seconds(seconds: f64) -> Result<Span, String> {
        if !seconds.is_finite() || seconds < 0.0 {
            return Err(format!(
                "a duration must be a number of seconds that is zero or more, not {seconds}"
            ));
        }
        if seconds > DURATION_MAX.as_secs_f64() {
            return Err(format!("{seconds} seconds is longer than ten years"));
        }
        Ok(Span(Duration::from_micros((seconds * 1e6).round() as u64)))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_nanos() == 0 {
            serializer.serialize_u64(self.0.as_secs())
        } else {
            serializer.serialize_f64(self.0.as_secs_f64())
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration: seconds (90) or units (\"1h 30m\")")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Span, E> {
                Span::from_seconds(v as f64).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Span, E> {
                Span::from_seconds(v as f64).map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Span, E> {
                Span::from_seconds(v).map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Span, E> {
                Span::parse(v).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Span {
        Span(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, millis: Option<u64>) {
        assert_eq!(Span::parse(text).ok().map(|s| s.0.as_millis() as u64), millis, "{text}");
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        check("90", Some(90_000));
        check("0.5", Some(500));
        check("1h 30m", Some(5_400_000));
        check("1h30m", Some(5_400_000));
        check("250ms", Some(250));
        check("2 days", Some(172_800_000));
        check("", None);
        check("soon", None);
        check("-1", None);
        check("5 parsecs", None);
        check("1e300", None);
        check("9999999999 weeks", None);
    }

    #[test]
    fn times_survive_a_round_trip_in_utc() {
        let time = Time::parse("2026-01-31T10:30:00.25+01:00").unwrap();
        assert_eq!(time.to_string(), "2026-01-31T09:30:00.25Z");
        assert_eq!(Time::parse(&time.to_string()).unwrap(), time);
        assert!(Time::parse("yesterday").unwrap_err().contains("RFC 3339"));
    }
}
