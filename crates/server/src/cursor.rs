//! Cursors: where the next page of a list starts, as an opaque text.
//!
//! A cursor is thirteen bytes in hexadecimal: which list (and thereby the version of the format), a position, and a
//! check sum. The sum is no secret: it catches cursors that were cut, altered or made up, so that they get an error
//! instead of a wrong page.

use sha2::{Digest, Sha256};

use crate::problem::{Kind, Problem};

/// What a cursor's position counts. The number is the first byte of the cursor: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Rows of tasks.
    Tasks = 1,
    /// Rows of tasks whose attempts are listed.
    Executions = 2,
    /// Items of a list that one task has.
    Items = 3,
    /// Sequence numbers of log lines.
    Logs = 4,
    /// Rows of the intake.
    Intake = 5,
}

const LENGTH: usize = 13;

/// Writes the cursor of a position.
pub(crate) fn encode(list: List, position: i64) -> String {
    let mut text = String::with_capacity(2 * LENGTH);
    for byte in bytes(list, position) {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

/// Reads the position of a cursor.
///
/// # Errors
/// 400 for what [`encode`] did not write for the same list.
pub(crate) fn decode(list: List, text: &str) -> Result<i64, Problem> {
    let wrong = || {
        let message = "is not a cursor of this list; pass on the next_cursor of the last page as it is";
        Problem::at(Kind::BadRequest, "cursor", message)
    };
    if text.len() != 2 * LENGTH || !text.is_ascii() {
        return Err(wrong());
    }
    let position = u64::from_str_radix(&text[2..18], 16).map_err(|_| wrong())? as i64;
    if position < 0 || encode(list, position) != text {
        return Err(wrong());
    }
    Ok(position)
}

fn bytes(list: List, position: i64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0] = list as u8;
    bytes[1..9].copy_from_slice(&position.to_be_bytes());
    let sum = Sha256::new()
        .chain_update(b"pensum cursor")
        .chain_update(&bytes[..9])
        .finalize();
    bytes[9..].copy_from_slice(&sum[..4]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_the_round_trip() {
        for position in [0, 1, 77, i64::MAX] {
            assert_eq!(decode(List::Tasks, &encode(List::Tasks, position)), Ok(position));
        }
    }

    #[test]
    fn an_altered_cursor_is_refused() {
        let cursor = encode(List::Tasks, 12_345);
        for at in 0..cursor.len() {
            for digit in "0123456789abcdefgZ".chars() {
                let mut altered: Vec<char> = cursor.chars().collect();
                altered[at] = digit;
                let altered: String = altered.into_iter().collect();
                assert_eq!(decode(List::Tasks, &altered).is_ok(), altered == cursor, "{altered}");
            }
        }
        assert!(decode(List::Executions, &cursor).is_err(), "a cursor of another list");
        for text in ["", "0", "é", "+1000000000000003039aaaaaaaa", &cursor[1..]] {
            assert!(decode(List::Tasks, text).is_err(), "{text}");
        }
    }
}
