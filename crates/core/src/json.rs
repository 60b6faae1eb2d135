//! JSON that passes through unparsed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// A JSON text that the engine carries but does not read: parameters, results, checkpoints, metadata.
/// It is always valid JSON, and holds no `\u0000` (one database would take it and the other refuse it).
#[derive(Clone)]
pub struct Json(Box<RawValue>);

/// The largest JSON text that a task may carry as parameters, result or checkpoint, in bytes.
pub const JSON_MAX: usize = 1 << 20;
/// The deepest nesting of such a text, in levels of arrays and objects.
pub const JSON_DEPTH_MAX: usize = 100;

impl Json {
    /// The JSON of a value.
    ///
    /// # Errors
    /// What serde says, for values that JSON cannot write (a map with keys that are no strings).
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Json, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Json)
    }

    /// Checks a text and keeps it as it stands.
    ///
    /// # Errors
    /// What serde says of the text, with line and column.
    pub fn parse(text: String) -> Result<Json, serde_json::Error> {
        RawValue::from_string(text).map(Json)
    }

    /// `null`.
    pub fn null() -> Json {
        Json(RawValue::NULL.to_owned())
    }

    /// `{}`.
    pub fn empty_object() -> Json {
        Json(RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Reads the text into a type.
    ///
    /// # Errors
    /// What serde says.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.get())
    }

    /// The text as a value tree.
    pub fn value(&self) -> serde_json::Value {
        serde_json::from_str(self.get()).unwrap_or_default()
    }

    /// What keeps this text out of a store, if anything: too long, nested too deep, or with a `\u0000` or half a
    /// surrogate pair in it, which not every database can keep. One pass over the bytes.
    pub fn problem(&self) -> Option<String> {
        let bytes = self.get().as_bytes();
        if bytes.len() > JSON_MAX {
            return Some(format!("is {} bytes of JSON, the most is {JSON_MAX}", bytes.len()));
        }
        let (mut at, mut depth, mut in_string) = (0, 0usize, false);
        while at < bytes.len() {
            match bytes[at] {
                b'\\' => {
                    if bytes[at + 1..].starts_with(b"u0000") {
                        return Some("contains \\u0000, the NUL character, which cannot be stored".to_owned());
                    }
                    match surrogate(&bytes[at..]) {
                        None => at += 1,
                        // The escape of the second half is the other six bytes.
                        Some(0xD800..=0xDBFF) if matches!(surrogate(&bytes[at + 6..]), Some(0xDC00..=0xDFFF)) => {
                            at += 11
                        }
                        Some(half) => {
                            return Some(format!(
                                "contains \\u{half:04x}, half a character, which cannot be stored"
                            ));
                        }
                    }
                }
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth -= 1,
                _ => {}
            }
            if depth > JSON_DEPTH_MAX {
                return Some(format!("is nested deeper than {JSON_DEPTH_MAX} levels"));
            }
            at += 1;
        }
        None
    }
}

/// The UTF-16 surrogate that an escape at the start of `text` stands for, if it is one.
fn surrogate(text: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(text.strip_prefix(b"\\u")?.get(..4)?).ok()?;
    u16::from_str_radix(digits, 16)
        .ok()
        .filter(|unit| (0xD800..=0xDFFF).contains(unit))
}

impl Default for Json {
    fn default() -> Json {
        Json::null()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Json) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Json {}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Json {
        Json::of(&value).unwrap_or_default()
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, problem: Option<&str>) {
        let found = Json::parse(text.to_owned()).unwrap().problem();
        match problem {
            None => assert_eq!(found, None, "{text}"),
            Some(part) => assert!(found.as_deref().is_some_and(|f| f.contains(part)), "{text}: {found:?}"),
        }
    }

    #[test]
    fn only_a_real_nul_escape_counts_as_one() {
        check(r#"{"a":"x\u0000"}"#, Some("NUL"));
        check(r#"{"\u0000":1}"#, Some("NUL"));
        check(r#"{"a":"\\u0000"}"#, None);
        check(r#"{"a":"\\\u0000"}"#, Some("NUL"));
        check(r#"{"a":"\n\\"}"#, None);
    }

    #[test]
    fn half_a_surrogate_pair_is_no_character() {
        check(r#""\ud83d\ude00""#, None);
        check(r#""\ud83d\ude00\u0000""#, Some("NUL"));
        check(r#""\uD83D""#, Some("half a character"));
        check(r#""\ud83d\u0041""#, Some("half a character"));
        check(r#""\ud83d\ud83d\ude00""#, Some("half a character"));
        check(r#""\ude00\ud83d""#, Some("half a character"));
        check(r#""\\ud83d""#, None);
        check(r#""\u00e9""#, None);
    }

    #[test]
    fn brackets_in_strings_are_no_nesting() {
        check(&format!("\"{}\"", "[".repeat(500)), None);
        check(&format!("{}{}", "[".repeat(101), "]".repeat(101)), Some("nested"));
        check(&format!("{}{}", "[".repeat(100), "]".repeat(100)), None);
    }
}
