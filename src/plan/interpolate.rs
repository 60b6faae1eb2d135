//! `${name}` in the texts of a plan.

use std::collections::BTreeMap;

use crate::yaml::{Fault, Node, Place, Value, nearest};

/// The variables of a run: built-in ones and those of the plan, with the values that hold for this run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables(BTreeMap<String, Node>);

impl Variables {
    /// Gives a variable a value.
    pub(crate) fn set(&mut self, name: &str, value: Node) {
        self.0.insert(name.to_owned(), value);
    }

    /// Gives a variable a text.
    pub(crate) fn set_text(&mut self, name: &str, text: impl Into<String>) {
        self.set(
            name,
            Node {
                at: Place::default(),
                value: Value::Text(text.into()),
            },
        );
    }

    /// Replaces every `${name}` in the texts of a value; `$${` stands for `${`. Keys are left alone.
    ///
    /// A text with a reference is a text again, also where the variable is a number, so that `args: ["${count}"]` works
    /// as it reads. Two exceptions: a text that is nothing but one reference takes a list or map as it is; and in the
    /// numeric fields of a task (`max_retries`, `units`, `retry`, `resources`) it takes a number as a number.
    pub(crate) fn fill(&self, node: &mut Node, faults: &mut Vec<Fault>) {
        self.fill_in(node, false, faults);
    }

    /// Like [`Variables::fill`], for a whole task.
    pub(crate) fn fill_task(&self, task: &mut Node, faults: &mut Vec<Fault>) {
        let Value::Map(entries) = &mut task.value else {
            return self.fill(task, faults);
        };
        for (key, node) in entries {
            let numeric = matches!(
                key.name.as_str(),
                "max_retries" | "units" | "retry" | "resources" | "resource_requirements"
            );
            self.fill_in(node, numeric, faults);
        }
    }

    fn fill_in(&self, node: &mut Node, numeric: bool, faults: &mut Vec<Fault>) {
        let at = node.at;
        match &mut node.value {
            Value::Text(text) if text.contains("${") => match self.text(text, numeric) {
                Ok(value) => node.value = value,
                Err(message) => faults.push(Fault::new(at, message)),
            },
            Value::List(items) => items.iter_mut().for_each(|item| self.fill_in(item, numeric, faults)),
            Value::Map(entries) => entries
                .iter_mut()
                .for_each(|(_, item)| self.fill_in(item, numeric, faults)),
            _ => {}
        }
    }

    fn text(&self, text: &str, numeric: bool) -> Result<Value, String> {
        if let Some(name) = sole_reference(text) {
            let value = &self.find(name)?.value;
            match value {
                Value::List(_) | Value::Map(_) => return Ok(value.clone()),
                Value::Number(_) if numeric => return Ok(value.clone()),
                Value::Text(text) if numeric && let Ok(number) = serde_json::from_str(text) => {
                    return Ok(Value::Number(number));
                }
                _ => {}
            }
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            if rest[..start].ends_with('$') {
                out.push_str(&rest[..start - 1]);
                out.push_str("${");
                rest = &rest[start + 2..];
                continue;
            }
            out.push_str(&rest[..start]);
            let inner = &rest[start + 2..];
            let Some(end) = inner.find('}') else {
                return Err("`${` has no closing `}`; write `$${` for a literal `${`".to_owned());
            };
            out.push_str(&self.as_text(&inner[..end])?);
            rest = &inner[end + 1..];
        }
        out.push_str(rest);
        Ok(Value::Text(out))
    }

    fn as_text(&self, name: &str) -> Result<String, String> {
        Ok(match &self.find(name)?.value {
            Value::Text(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Null => {
                return Err(format!(
                    "the variable `{name}` has no value; give it one with --var {name}=…"
                ));
            }
            Value::List(_) | Value::Map(_) => {
                return Err(format!(
                    "the variable `{name}` is a list or a map; use it as a whole, not within a text"
                ));
            }
        })
    }

    fn find(&self, name: &str) -> Result<&Node, String> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let near = nearest(name, known.iter().copied())
                .map(|n| format!("did you mean `{n}`? "))
                .unwrap_or_default();
            let known = known.join(", ");
            format!("there is no variable `{name}`; {near}known are {known} (write `$${{` for a literal `${{`)")
        })
    }
}

/// The name, when the text is one reference and nothing else.
fn sole_reference(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    (!name.contains(['}', '{'])).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn variables() -> Variables {
        let mut variables = Variables::default();
        for (name, value) in [("dir", "/tmp/a"), ("n", "5"), ("list", "[1, two]"), ("unset", "~")] {
            variables.set(name, yaml::read(value).unwrap());
        }
        variables
    }

    #[track_caller]
    fn check(text: &str, filled: &str) {
        let mut node = yaml::read(text).unwrap();
        let mut faults = Vec::new();
        variables().fill_task(&mut node, &mut faults);
        assert_eq!((node.json().as_str(), faults.len()), (filled, 0), "{text}: {faults:?}");
    }

    #[track_caller]
    fn check_fault(text: &str, column: u64, part: &str) {
        let mut node = yaml::read(text).unwrap();
        let mut faults = Vec::new();
        variables().fill_task(&mut node, &mut faults);
        assert!(
            faults.len() == 1 && faults[0].at.column == column && faults[0].message.contains(part),
            "{faults:?}"
        );
    }

    #[test]
    fn references_are_replaced_in_every_text() {
        check(
            r#"{a: "${dir}/x-${n}", b: ["${dir}", 3]}"#,
            r#"{"a":"/tmp/a/x-5","b":["/tmp/a",3]}"#,
        );
        check(
            r#"{args: ["${n}"], max_retries: "${n}"}"#,
            r#"{"args":["5"],"max_retries":5}"#,
        );
        check(r#"{args: "${list}"}"#, r#"{"args":[1,"two"]}"#);
    }

    #[test]
    fn two_dollars_stand_for_one() {
        check(
            r#"{a: "$${dir} costs $5 and ${n}$$"}"#,
            r#"{"a":"${dir} costs $5 and 5$$"}"#,
        );
    }

    #[test]
    fn what_cannot_be_replaced_is_named_with_its_place() {
        check_fault(
            r#"{a: "${dri}"}"#,
            5,
            "did you mean `dir`? known are dir, list, n, unset",
        );
        check_fault(r#"{a: "${dir"}"#, 5, "no closing");
        check_fault(r#"{a: "x${list}"}"#, 5, "use it as a whole");
        check_fault(r#"{a: "x${unset}"}"#, 5, "--var unset=");
    }
}
