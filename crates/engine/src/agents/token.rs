//! Lease tokens: all that any node has to know of a lease that an agent holds, carried by the agent itself.

use std::fmt;
use std::str::FromStr;

use pensum_core::store::LeaseRef;
use pensum_core::{LeaseId, NodeId, TaskId, Time};
use sha2::{Digest, Sha256};

/// What an agent names with everything that it says of a task. Written as 64 hexadecimal digits: 32 of the lease, 16 of the
/// session, 16 of the deadline in microseconds since the epoch, 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) lease: LeaseId,
    /// The session that it was given to.
    pub(super) session: NodeId,
    /// When the run is to have ended.
    pub(super) deadline: Option<Time>,
}

/// How long a token is.
const LENGTH: usize = 64;

impl Token {
    pub(super) fn lease_of(self, task: TaskId) -> LeaseRef {
        LeaseRef {
            task,
            lease: self.lease,
        }
    }

    /// True once the run took longer than its task allows.
    pub(super) fn is_overdue(self, now: Time) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deadline = self.deadline.map_or(0, |deadline| deadline.as_micros().max(1));
        write!(f, "{}{:016x}{deadline:016x}", self.lease, self.session.0)
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Token, &'static str> {
        let wrong = "is no lease token: send back the one that came with the task";
        let is_hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() != LENGTH || !is_hex {
            return Err(wrong);
        }
        let lease = u128::from_str_radix(&text[..32], 16).map_err(|_| wrong)?;
        let session = u64::from_str_radix(&text[32..48], 16).map_err(|_| wrong)?;
        let deadline = i64::from_str_radix(&text[48..], 16).map_err(|_| wrong)?;
        Ok(Token {
            lease: LeaseId(lease),
            session: NodeId(session),
            deadline: (deadline > 0).then(|| Time::from_micros(deadline)),
        })
    }
}

/// The claimer that a session of an agent is: the same on every node, and after every restart.
pub(super) fn session(namespace: &str, agent: &str, session: &str) -> NodeId {
    let digest = Sha256::new()
        .chain_update(namespace)
        .chain_update([0])
        .chain_update(agent)
        .chain_update([0])
        .chain_update(session)
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    NodeId(u64::from_be_bytes(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for deadline in [None, Some(Time::from_micros(1_767_225_600_000_000))] {
            let token = Token {
                lease: LeaseId(u128::MAX - 7),
                session: NodeId(1),
                deadline,
            };
            let text = token.to_string();
            assert_eq!((text.len(), text.parse()), (LENGTH, Ok(token)));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let hex = |digit: &str, count: usize| digit.repeat(count);
        for text in [
            "".to_owned(),
            "token".to_owned(),
            hex("0", 63),
            hex("0", 65),
            hex("g", 64),
            hex("A", 64),
            format!("+{}", hex("0", 63)),
            hex("é", 32),
            hex("f", 64),
        ] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_session_is_the_same_claimer_everywhere_and_no_two_are_one() {
        let here = session("default", "a", "1");
        assert_eq!(here, session("default", "a", "1"));
        assert_eq!(here, NodeId(0xc82c_d8c2_b53c_e303));
        assert_ne!(here, session("default", "a1", ""));
        assert_ne!(here, session("other", "a", "1"));
    }
}
