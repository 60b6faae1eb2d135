//! From JSON to types, with the path of whatever is wrong.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::ENGINE_FIELDS;

/// One thing that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// Where: `tasks[3].priority`; empty for the input as a whole.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Everything that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Invalid(pub Vec<Problem>);

impl Invalid {
    /// One problem.
    pub fn one(path: impl Into<String>, message: impl Into<String>) -> Invalid {
        Invalid(vec![Problem {
            path: path.into(),
            message: message.into(),
        }])
    }
}

/// Reads JSON into a type.
///
/// # Errors
/// One problem, with the path of the value or field that is wrong.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Invalid> {
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        // The path costs a second, slower pass, which only wrong input pays.
        Err(plain) => Err(explain_failure::<T>(text, &plain)),
    }
}

fn explain_failure<T: DeserializeOwned>(text: &[u8], plain: &serde_json::Error) -> Invalid {
    use serde_json::error::Category;
    if matches!(plain.classify(), Category::Syntax | Category::Eof | Category::Io) {
        return Invalid::one("", format!("is not JSON: {plain}"));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(text);
    let Err(error) = serde_path_to_error::deserialize::<_, T>(deserializer) else {
        return Invalid::one("", plain.to_string());
    };
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let message = friendly(&error.inner().to_string());
    // Serde places these two at the object; the field is what has to change.
    let field = ["missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start));
    let path = match field.and_then(|rest| rest.strip_suffix('`')) {
        Some(field) if path.is_empty() => field.to_owned(),
        Some(field) => format!("{path}.{field}"),
        None => path,
    };
    Invalid::one(path, message)
}

/// Reads JSON into a struct, which must be written as an object.
///
/// # Errors
/// One problem, with the path of the value or field that is wrong.
pub fn parse_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, Invalid> {
    parse::<Object<T>>(text).map(|Object(value)| value)
}

/// A struct that is read from an object and from nothing else. Serde reads structs from arrays of their fields' values
/// too, which nobody means who writes `[]`.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

/// For serde's `deserialize_with`: a struct, written as an object.
///
/// # Errors
/// Those of the deserializer.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

pub(super) fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::<Object<T>>::deserialize(deserializer).map(|some| some.map(|Object(value)| value))
}

pub(super) fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let all = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|Object(value)| value).collect())
}

/// Adds what to do to serde's sentence, and takes the position off, which the path replaces.
pub fn friendly(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(head, _)| head);
    if let Some(field) = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split('`').next())
        && ENGINE_FIELDS.contains(&field)
        // What an agent sends has none of them: `result` there is a misspelt `outcome`, or `results`.
        && !["`lease_token`", "`wait_ms`"].iter().any(|field| message.contains(field))
    {
        return format!("`{field}` is set by the engine; leave it out");
    }
    message.to_owned()
}
