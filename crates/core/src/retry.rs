//! When a failed attempt is tried again.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::time::Span;

/// How the delay grows from one failure to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryStrategy {
    /// The same delay each time.
    Fixed,
    /// `delay × factorⁿ` after `n` earlier failures.
    #[default]
    Exponential,
}

/// A task's retry policy: how long to wait after each failure. How often is `max_retries`, beside it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// How the delay grows; exponential by default.
    pub strategy: RetryStrategy,
    /// The delay after the first failure; 1 s by default.
    pub delay: Span,
    /// The growth of the exponential strategy, 1 to 100; 2 by default.
    pub factor: f64,
    /// No delay is longer than this; 5 min by default.
    pub max_delay: Span,
    /// Full jitter: the delay is drawn evenly from zero to the computed one, so that many tasks that fail together do
    /// not come back together ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). On by default.
    #[serde(deserialize_with = "jitter")]
    pub jitter: bool,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            strategy: RetryStrategy::Exponential,
            delay: Span(Duration::from_secs(1)),
            factor: 2.0,
            max_delay: Span(Duration::from_secs(300)),
            jitter: true,
        }
    }
}

impl RetryPolicy {
    /// The same delay after each failure, without jitter.
    pub fn fixed(delay: Duration) -> RetryPolicy {
        RetryPolicy {
            strategy: RetryStrategy::Fixed,
            delay: Span(delay),
            max_delay: Span(delay),
            jitter: false,
            ..RetryPolicy::default()
        }
    }

    /// The delay after failure number `failures` (from 1), given one draw from `[0, 1)`.
    pub fn backoff(&self, failures: u32, draw: f64) -> Duration {
        let cap = self.max_delay.0.as_secs_f64();
        let base = match self.strategy {
            RetryStrategy::Fixed => self.delay.0.as_secs_f64(),
            RetryStrategy::Exponential => {
                let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
                self.delay.0.as_secs_f64() * self.factor.powi(exponent)
            }
        };
        // A power that overflows to infinity is still "longer than the cap".
        let bounded = if base.is_finite() { base.min(cap) } else { cap };
        Duration::from_secs_f64(if self.jitter {
            bounded * draw.clamp(0.0, 1.0)
        } else {
            bounded
        })
    }

    /// What is wrong with the policy, as (field, message) pairs.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !(1.0..=100.0).contains(&self.factor) {
            problems.push(("factor", format!("must be 1 to 100, not {}", self.factor)));
        }
        if self.strategy == RetryStrategy::Exponential && self.max_delay < self.delay {
            problems.push(("max_delay", "must not be shorter than delay".to_owned()));
        }
        problems
    }
}

fn jitter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true, false, \"full\" or \"none\"")
        }
        fn visit_bool<E: de::Error>(self, v: bool) -> Result<bool, E> {
            Ok(v)
        }
        fn visit_str<E: de::Error>(self, v: &str) -> Result<bool, E> {
            match v {
                "full" => Ok(true),
                "none" => Ok(false),
                _ => Err(E::invalid_value(de::Unexpected::Str(v), &self)),
            }
        }
    }
    deserializer.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_exponential_delay_doubles_up_to_its_cap() {
        let policy = RetryPolicy {
            jitter: false,
            ..RetryPolicy::default()
        };
        let seconds: Vec<_> = (1..=11).map(|n| policy.backoff(n, 0.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn the_fixed_delay_stays() {
        let policy = RetryPolicy::fixed(Duration::from_secs(7));
        assert_eq!(policy.backoff(1, 0.3), policy.backoff(900, 0.9));
    }

    proptest! {
        #[test]
        fn no_delay_passes_the_cap(failures in 0u32.., draw in 0.0f64..1.0, factor in 1.0f64..100.0) {
            let policy = RetryPolicy { factor, ..RetryPolicy::default() };
            prop_assert!(policy.backoff(failures, draw) <= policy.max_delay.0);
        }
    }
}
