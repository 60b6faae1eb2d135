//! YAML (and JSON, which is YAML too) as a tree that keeps the order of keys and the place of every value, so that
//! every message can name a line and a column.

use std::fmt;

use pensum_core::input::{Invalid, Problem};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Number;
use serde_saphyr::Spanned;

/// A line and a column, both from 1; 0 where the text has no such place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The line.
    pub(crate) line: u64,
    /// The column, in characters.
    pub(crate) column: u64,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Where.
    pub(crate) at: Place,
    /// What.
    pub(crate) value: Value,
}

/// A value of JSON's kinds; maps keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// The key of a map entry and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    /// Where.
    pub(crate) at: Place,
    /// What.
    pub(crate) name: String,
}

/// Something wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) at: Place,
    /// What is wrong, and what to do.
    pub(crate) message: String,
}

impl Fault {
    /// A fault at a place.
    pub(crate) fn new(at: Place, message: impl Into<String>) -> Fault {
        Fault {
            at,
            message: message.into(),
        }
    }

    /// `file:line:column: message`, or without the position where it is not known.
    pub(crate) fn describe(&self, file: &str) -> String {
        if self.at.line == 0 {
            format!("{file}: {}", self.message)
        } else {
            format!("{file}:{}:{}: {}", self.at.line, self.at.column, self.message)
        }
    }
}

/// Reads one YAML document.
///
/// Duplicate keys are refused, `yes` and `on` are text as in YAML 1.2, and the parser's budgets bound depth, size and
/// the expansion of aliases.
///
/// # Errors
/// What is wrong with the text, with its place.
pub(crate) fn read(text: &str) -> Result<Node, Fault> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_documents: 1 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map(place).unwrap_or_default();
        let message = error.without_snippet().to_string();
        // The place stands before the message already.
        let message = match message.rsplit_once(" at line ") {
            Some((head, tail)) if tail.chars().all(|c| c.is_ascii_digit() || " ,column:".contains(c)) => {
                head.to_owned()
            }
            _ => message,
        };
        // What would let it pass is no setting of ours.
        let message = match message.strip_prefix("duplicate mapping key: ") {
            Some(rest) => {
                let key = rest.split_once(", set DuplicateKeyPolicy").map_or(rest, |(key, _)| key);
                format!("`{key}` is there twice; take one of them out")
            }
            None => message,
        };
        Fault::new(at, message)
    })
}

fn place(location: serde_saphyr::Location) -> Place {
    Place {
        line: location.line(),
        column: location.column(),
    }
}

impl Node {
    /// The entries, when it is a map.
    pub(crate) fn entries(&self) -> Option<&[(Key, Node)]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entries, their values to be changed; none when it is no map.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = (&Key, &mut Node)> {
        let entries = match &mut self.value {
            Value::Map(entries) => &mut entries[..],
            _ => &mut [],
        };
        entries.iter_mut().map(|(key, value)| (&*key, value))
    }

    /// The value of a key, when it is a map that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, node)| node)
    }

    /// The key and value, when it is a map that has it.
    pub(crate) fn entry(&self, name: &str) -> Option<&(Key, Node)> {
        self.entries()?.iter().find(|(key, _)| key.name == name)
    }

    /// The text, when it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of value it is, as messages name it.
    pub(crate) const fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The value as JSON text.
    pub(crate) fn json(&self) -> String {
        // Text keys and finite numbers are all that the tree can hold, so that JSON can always write it.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The place of what a path such as `retry.factor` or `depends_on[1]` names: of the value, or of the key where the
    /// key itself is what is wrong. The deepest part that exists counts.
    pub(crate) fn locate(&self, path: &str, of_key: bool) -> Place {
        let mut node = self;
        let mut at = self.at;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let next = match &node.value {
                Value::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key.name == step)
                    .map(|(key, node)| (key.at, node)),
                Value::List(items) => step
                    .trim_end_matches(']')
                    .parse::<usize>()
                    .ok()
                    .and_then(|i| items.get(i))
                    .map(|node| (node.at, node)),
                _ => None,
            };
            let Some((key_at, next)) = next else { break };
            node = next;
            at = if of_key { key_at } else { next.at };
        }
        at
    }

    /// Reads each entry of a block such as `queues: {NAME: {…}}`. Every fault of all of them is named by its path.
    pub(crate) fn read_entries<T>(
        &self,
        block: &str,
        read: impl Fn(&str, &Node) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Vec<Fault>> {
        let Some(entries) = self.entries() else {
            let message = format!("{block}: must be a map, not {}", self.kind());
            return Err(vec![Fault::new(self.at, message)]);
        };
        let mut all = Vec::with_capacity(entries.len());
        let mut faults = Vec::new();
        for (key, node) in entries {
            match read(&key.name, node) {
                Ok(entry) => all.push(entry),
                Err(Invalid(problems)) => {
                    let named = format!("{block}.{}", key.name);
                    // The id of an entry is the name that it stands under.
                    let fault = |problem: &Problem| match problem.path == "id" && node.get("id").is_none() {
                        true => Fault::new(key.at, format!("{named}: {}", problem.message)),
                        false => node.fault(&named, problem),
                    };
                    faults.extend(problems.iter().map(fault));
                }
            }
        }
        match faults.is_empty() {
            true => Ok(all),
            false => Err(faults),
        }
    }

    /// The value in JSON, and an empty object for one of which nothing is said.
    pub(crate) fn json_object(&self) -> String {
        match self.value {
            Value::Null => "{}".to_owned(),
            _ => self.json(),
        }
    }

    /// A problem that a check found in this value, as a fault. `named` is what stands before the problem's path.
    pub(crate) fn fault(&self, named: &str, problem: &Problem) -> Fault {
        let of_key = problem.message.starts_with("unknown field") || problem.message.contains("leave it out");
        let path = match (named.is_empty(), problem.path.is_empty()) {
            (true, _) => problem.path.clone(),
            (false, true) => named.to_owned(),
            (false, false) => format!("{named}.{}", problem.path),
        };
        let message = if path.is_empty() {
            problem.message.clone()
        } else {
            format!("{path}: {}", problem.message)
        };
        Fault::new(self.locate(&problem.path, of_key), message)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        Placed::<true>::deserialize(deserializer).map(|placed| placed.0)
    }
}

/// Reads JSON; its nodes have no places.
///
/// # Errors
/// What serde says of the text.
pub(crate) fn from_json(text: &str) -> Result<Node, serde_json::Error> {
    serde_json::from_str::<Placed<false>>(text).map(|placed| placed.0)
}

/// A node to read: with places from YAML, without from everything else, which knows none.
struct Placed<const PLACES: bool>(Node);

impl<'de, const PLACES: bool> Deserialize<'de> for Placed<PLACES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Placed<PLACES>, D::Error> {
        if PLACES {
            let spanned = Spanned::<Bare<true>>::deserialize(deserializer)?;
            Ok(Placed(Node {
                at: place(spanned.referenced),
                value: spanned.value.0,
            }))
        } else {
            let bare = Bare::<false>::deserialize(deserializer)?;
            Ok(Placed(Node {
                at: Place::default(),
                value: bare.0,
            }))
        }
    }
}

struct Bare<const PLACES: bool>(Value);

impl<'de, const PLACES: bool> Deserialize<'de> for Bare<PLACES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bare<PLACES>, D::Error> {
        deserializer.deserialize_any(ValueVisitor::<PLACES>).map(Bare)
    }
}

struct ValueVisitor<const PLACES: bool>;

impl<'de, const PLACES: bool> Visitor<'de> for ValueVisitor<PLACES> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true or false, a list or a map")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Placed<PLACES>>()? {
            list.push(item.0);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        loop {
            let key = if PLACES {
                entries.next_key::<Spanned<String>>()?.map(|key| Key {
                    at: place(key.referenced),
                    name: key.value,
                })
            } else {
                entries.next_key::<String>()?.map(|name| Key {
                    at: Place::default(),
                    name,
                })
            };
            let Some(key) = key else { break };
            map.push((key, entries.next_value::<Placed<PLACES>>()?.0));
        }
        Ok(Value::Map(map))
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Number(value) => value.serialize(serializer),
            Value::Text(value) => serializer.serialize_str(value),
            Value::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, node) in entries {
                    map.serialize_entry(&key.name, node)?;
                }
                map.end()
            }
        }
    }
}

/// The known name that is nearest to a wrong one, when one is near enough to be a slip of the finger.
pub(crate) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bound = (wrong.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(d, _)| *d <= bound)
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours between two texts.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_fault(text: &str, line: u64, part: &str) {
        let fault = read(text).unwrap_err();
        assert!(
            fault.at.line == line && fault.message.contains(part),
            "{text:?}: {fault:?}"
        );
    }

    #[test]
    fn values_keep_their_order_and_place() {
        let node = read("b: 1\na:\n  - x\n  - {deep: 2.5, on: yes}\n\"1\": ~\n2: true\n").unwrap();
        assert_eq!(
            node.json(),
            r#"{"b":1,"a":["x",{"deep":2.5,"on":"yes"}],"1":null,"2":true}"#
        );
        assert_eq!(node.locate("a[1].deep", false), Place { line: 4, column: 12 });
        assert_eq!(node.locate("a[1].deep", true), Place { line: 4, column: 6 });
        assert_eq!(node.locate("a[1].missing", false).line, 4);
    }

    #[test]
    fn json_text_is_read_in_its_own_order() {
        let node = from_json(r#"{"z":[1,null,"a"],"a":{"c":1.5,"b":false}}"#).unwrap();
        assert_eq!(node.json(), r#"{"z":[1,null,"a"],"a":{"c":1.5,"b":false}}"#);
    }

    #[test]
    fn wrong_yaml_is_named_with_its_line() {
        check_fault("a: 1\na: 2\n", 2, "`a` is there twice");
        check_fault("a: [1, 2\nb: 3\n", 2, "");
        check_fault("a: 'x\n", 2, "");
    }

    #[test]
    fn an_alias_bomb_is_refused_quickly() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(read(&bomb).is_err());
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_it_is_near() {
        assert_eq!(nearest("cuont", ["list", "count"]), Some("count"));
        assert_eq!(nearest("count", ["summary"]), None);
    }
}
