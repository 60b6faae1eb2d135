//! Which failures are the same one: a short name for an error that leaves out what differs from task to task.
//!
//! The name is made of the handler, the error type and the first line of the message, in which every number and id is
//! replaced by `#`. Quoted texts stay: they often name what is wrong (a column, a host, a program), and two groups that
//! could be one do less harm than one group that hides two causes.

use std::fmt;
use std::iter::Peekable;
use std::str::{CharIndices, FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::clip;
use crate::outcome::ErrorInfo;

/// How much of a normalised line counts, in characters.
const LINE_MAX: usize = 200;
/// From how many digits on a hexadecimal number is taken for one without a `0x` before it.
const HEX_MIN: usize = 8;
/// Digits of a fingerprint.
const DIGITS: usize = 12;
/// The bits of a fingerprint.
const BITS: u32 = 48;
/// The groups of a UUID, by their digits (RFC 9562, section 4).
const UUID: [usize; 5] = [8, 4, 4, 4, 12];

/// The name of a sort of failure: 12 lower-case hexadecimal digits, the same in every version of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The fingerprint of an error of a handler. An error that is absent has one too: that of an empty one.
    pub fn of(handler: &str, error: Option<&ErrorInfo>) -> Fingerprint {
        let (kind, message) = error.map_or(("", ""), |error| (&error.kind, &error.message));
        // No name has a NUL character, so no two triples are written alike.
        let text = format!("{handler}\0{kind}\0{}", normalised(message));
        let hash = fnv_1a(text.as_bytes());
        Fingerprint((hash >> BITS) ^ (hash & ((1 << BITS) - 1)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$x}", self.0, width = DIGITS)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Fingerprint, String> {
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == DIGITS
            && text.bytes().all(digits)
            && let Ok(number) = u64::from_str_radix(text, 16)
        {
            return Ok(Fingerprint(number));
        }
        let shown = clip(text);
        Err(format!(
            "`{shown}` is not a fingerprint, which is {DIGITS} digits of 0-9 and a-f"
        ))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// FNV-1a with 64 bits, by Glenn Fowler, Landon Curt Noll and Kiem-Phong Vo
/// (<http://www.isthe.com/chongo/tech/comp/fnv/>), whose advice for other sizes is to fold the bits above onto those below.
fn fnv_1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes
        .iter()
        .fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// The first line that says something, at most [`LINE_MAX`] characters of it: white space as single spaces, and `#` for
/// UUIDs, for hexadecimal numbers, and for decimal ones that no word begins before (`worker17` and `sha256` are names;
/// of `10ms` the unit stays).
fn normalised(message: &str) -> String {
    let line = message
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("");
    let mut out = String::new();
    let mut length = 0;
    let mut rest = line;
    while let Some(first) = rest.chars().next()
        && length < LINE_MAX
    {
        let taken = if first.is_whitespace() {
            out.push(' ');
            length += 1;
            rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len())
        } else if first.is_alphanumeric() {
            let taken = uuid(rest).unwrap_or_else(|| word_end(rest));
            let word = placeholder(&rest[..taken]).unwrap_or_else(|| rest[..taken].to_owned());
            let word: String = word.chars().take(LINE_MAX - length).collect();
            length += word.chars().count();
            out.push_str(&word);
            taken
        } else {
            out.push(first);
            length += 1;
            first.len_utf8()
        };
        rest = &rest[taken..];
    }
    out.truncate(out.trim_end().len());
    out
}

/// The end of the UUID that a text begins with.
fn uuid(text: &str) -> Option<usize> {
    let mut end = 0;
    for (index, digits) in UUID.into_iter().enumerate() {
        if index > 0 {
            text[end..].starts_with('-').then_some(())?;
            end += 1;
        }
        let group = text.get(end..end + digits)?;
        group.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
        end += digits;
    }
    let goes_on = text[end..].chars().next().is_some_and(char::is_alphanumeric);
    (!goes_on).then_some(end)
}

/// The end of the word that a text begins with: letters and digits, and the points and commas within a number.
fn word_end(text: &str) -> usize {
    let mut chars: Peekable<CharIndices<'_>> = text.char_indices().peekable();
    let starts_with_digit = text.starts_with(|c: char| c.is_ascii_digit());
    let mut previous = ' ';
    while let Some((at, c)) = chars.next() {
        let digit_follows = chars.peek().is_some_and(|(_, next)| next.is_ascii_digit());
        let within_number = starts_with_digit && matches!(c, '.' | ',') && previous.is_ascii_digit() && digit_follows;
        if !c.is_alphanumeric() && !within_number {
            return at;
        }
        previous = c;
    }
    text.len()
}

/// What stands for a word that differs from task to task; `None` where the word stays.
fn placeholder(word: &str) -> Option<String> {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let is_hex = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => hex(digits),
        // Without a digit it would be a word that happens to have no letter after f.
        None => word.len() >= HEX_MIN && hex(word) && word.bytes().any(|b| b.is_ascii_digit()),
    };
    if is_hex || uuid(word) == Some(word.len()) {
        return Some("#".to_owned());
    }
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut out = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' | '.' | ',' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(message: &str, line: &str) {
        assert_eq!(normalised(message), line, "{message:?}");
    }

    #[test]
    fn what_differs_from_task_to_task_is_left_out() {
        check("it exited with code 3", "it exited with code #");
        check("took 3.5s of 10s, 1,024 bytes", "took #s of #s, # bytes");
        check("row 17 of 2026-11-21T22:46:51.123Z", "row # of #-#-#T#:#:#Z");
        check("no host 10.0.0.17:5432.", "no host #:#.");
        check("order 0198c1f0-7f3c-7abc-8def-0123456789ab is gone", "order # is gone");
        check(
            "order 0198C1F0-7F3C-7ABC-8DEF-0123456789AB.1 is gone",
            "order #.# is gone",
        );
        check("commit 5e59cb9 is #f00", "commit #e#cb# is #f00");
        check("blob 5e59cb9f, d0e1f2a3b4", "blob #, #");
        check("at 0x1F and 0xdeadbeef", "at # and #");
        check("task_42 (worker-7)", "task_# (worker-#)");
    }

    #[test]
    fn what_names_the_cause_stays() {
        check("utf8, sha256, worker17, x86_64", "utf8, sha256, worker17, x86_#");
        check("no column 'colour' in \"orders\"", "no column 'colour' in \"orders\"");
        check("the cafebabe was defaced", "the cafebabe was defaced");
        check("Größe ½ überschritten: naïve", "Größe ½ überschritten: naïve");
    }

    #[test]
    fn one_line_counts_and_so_much_of_it() {
        check("\n  \t first \t line \r\nsecond", "first line");
        check("", "");
        check(" \n\n ", "");
        check(&"é".repeat(8_000), &"é".repeat(LINE_MAX));
        check(&"a b ".repeat(100), "a b ".repeat(LINE_MAX / 4).trim_end());
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // The vectors of the authors' page.
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    fn of(handler: &str, kind: &str, message: &str) -> String {
        Fingerprint::of(handler, Some(&ErrorInfo::new(kind, message))).to_string()
    }

    #[test]
    fn a_fingerprint_tells_handler_type_and_message_apart_and_nothing_else() {
        let one = of("mail", "timeout", "no answer after 30 s\nfrom a.example");
        assert_eq!(one, of("mail", "timeout", "no  answer after 31 s\nfrom b.example"));
        for other in [
            of("post", "timeout", "no answer after 30 s"),
            of("mail", "failed", "no answer after 30 s"),
            of("mail", "timeout", "no word after 30 s"),
            of("mailtimeout", "", "no answer after 30 s"),
            Fingerprint::of("mail", None).to_string(),
        ] {
            assert_ne!(one, other);
        }
        // Stored in requests and scripts, so it must never change.
        assert_eq!(of("fail", "failed", "failed on purpose"), "98925f38c85a");
    }

    #[test]
    fn only_twelve_lower_case_digits_are_a_fingerprint() {
        let one: Fingerprint = "00c0ffee0017".parse().unwrap();
        assert_eq!(one.to_string(), "00c0ffee0017");
        assert_eq!(serde_json::to_string(&one).unwrap(), "\"00c0ffee0017\"");
        for wrong in [
            "",
            "00c0ffee001",
            "00c0ffee00170",
            "00C0FFEE0017",
            "00c0ffee001g",
            "+0c0ffee0017",
            "ééééee",
        ] {
            let message = wrong.parse::<Fingerprint>().unwrap_err();
            assert!(message.contains("12 digits"), "{message}");
        }
    }
}
