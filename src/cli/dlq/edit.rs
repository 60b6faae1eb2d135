//! Other parameters for dead letters, before they are retried.

use pensum_core::TaskId;
use serde_json::{Value, json};

use crate::cli::client::Client;
use crate::cli::exit::{Exit, Failure};
use crate::cli::task::{json_of, path, source};

/// What is to become of the parameters.
pub(super) enum Edit {
    /// These instead.
    Replace(Value),
    /// Each value at its place.
    Set(Vec<(String, Value)>),
}

impl Edit {
    /// What the flags say; `None` when they say nothing.
    pub(super) fn of(set: &[String], parameters: Option<&str>) -> anyhow::Result<Option<Edit>> {
        if let Some(text) = parameters {
            let parameters = json_of("--parameters", &source(text)?)?;
            return Ok(Some(Edit::Replace(parameters)));
        }
        let mut values = Vec::with_capacity(set.len());
        for pair in set {
            let Some((place, value)) = pair.split_once('=').filter(|(place, _)| !place.is_empty()) else {
                return Err(Failure::usage(format!("--set: `{pair}` is not of the form PATH=VALUE")).into());
            };
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            values.push((place.to_owned(), value));
        }
        Ok((!values.is_empty()).then_some(Edit::Set(values)))
    }

    fn apply(&self, parameters: &mut Value) -> Result<(), String> {
        match self {
            Edit::Replace(new) => parameters.clone_from(new),
            Edit::Set(values) => {
                for (place, value) in values {
                    let target = steps(place).and_then(|steps| walk(parameters, &steps));
                    *target.map_err(|why| format!("--set {place}: {why}"))? = value.clone();
                }
            }
        }
        Ok(())
    }
}

/// Changes the parameters of every task, each only at the version at which it was read. What cannot be changed is found
/// before anything is, as far as it can be seen here; where a node refuses one, those before it get theirs back.
pub(super) async fn edit(client: &Client, ids: &[TaskId], edit: &Edit) -> anyhow::Result<()> {
    let mut changes = Vec::with_capacity(ids.len());
    for id in ids {
        let mut task = client.get_value(&path(*id), &[]).await?;
        if task["dead_lettered_at"].is_null() {
            let message = format!("task {id} is no dead letter; nothing was changed or retried");
            return Err(Failure::new(Exit::Conflict, message).into());
        }
        let before = task["parameters"].take();
        let mut parameters = before.clone();
        edit.apply(&mut parameters)
            .map_err(|why| Failure::usage(format!("{why} (task {id}); nothing was changed or retried")))?;
        changes.push((*id, task["version"].as_u64(), before, parameters));
    }
    let mut done = Vec::with_capacity(changes.len());
    for (id, version, before, parameters) in changes {
        match change(client, id, version, &parameters).await {
            Ok(version) => done.push((id, version, before)),
            Err(error) => {
                let exit = Exit::of(&error).unwrap_or(Exit::Failed);
                let kept = put_back(client, done).await;
                let message = format!("{error} (task {id}); nothing was retried{kept}");
                return Err(Failure::new(exit, message).into());
            }
        }
    }
    Ok(())
}

/// Changes the parameters of a task at a version; answers the next one.
async fn change(client: &Client, id: TaskId, version: Option<u64>, parameters: &Value) -> anyhow::Result<Option<u64>> {
    let body = json!({ "parameters": parameters });
    let changed = client.patch(&path(id), &body, version).await?;
    Ok(serde_json::from_str::<Value>(&changed)?["version"].as_u64())
}

/// Gives tasks their parameters back; says which have others now, in the middle of a sentence.
async fn put_back(client: &Client, done: Vec<(TaskId, Option<u64>, Value)>) -> String {
    let mut kept = Vec::new();
    for (id, version, before) in done {
        if let Err(error) = change(client, id, version, &before).await {
            kept.push(format!("task {id} keeps its new parameters: {error}"));
        }
    }
    match kept.is_empty() {
        true => " or changed".to_owned(),
        false => format!("; {}", kept.join("; ")),
    }
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step<'a> {
    /// A field, or a position where it meets a list: `name`, `0`.
    Name(&'a str),
    /// A position: `[0]`.
    Position(usize),
}

/// Reads `a.b[0].c`.
fn steps(place: &str) -> Result<Vec<Step<'_>>, String> {
    let wrong = || "write a path as name.name or name[0].name; for other names give --parameters".to_owned();
    let mut steps = Vec::new();
    for part in place.split('.') {
        let (name, positions) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !name.is_empty() {
            steps.push(Step::Name(name));
        } else if positions.is_empty() || !steps.is_empty() {
            return Err(wrong());
        }
        let mut rest = positions;
        while !rest.is_empty() {
            let (number, after) = rest
                .strip_prefix('[')
                .and_then(|r| r.split_once(']'))
                .ok_or_else(wrong)?;
            steps.push(Step::Position(number.parse().map_err(|_| wrong())?));
            rest = after;
        }
    }
    Ok(steps)
}

/// The place at the end of a path. Objects on the way are made where nothing is; a list grows by one at its end.
fn walk<'a>(root: &'a mut Value, steps: &[Step<'_>]) -> Result<&'a mut Value, String> {
    let mut place = root;
    for step in steps {
        if place.is_null() && matches!(step, Step::Name(_)) {
            *place = json!({});
        }
        place = match (place, step) {
            (Value::Object(fields), Step::Name(name)) => fields.entry(*name).or_insert(Value::Null),
            (Value::Array(items), Step::Name(name)) => {
                let position = name
                    .parse()
                    .map_err(|_| format!("`{name}` is asked of a list; give a position"))?;
                item(items, position)?
            }
            (Value::Array(items), Step::Position(position)) => item(items, *position)?,
            (other, Step::Name(name)) => return Err(format!("`{name}` is asked of {other}, which has no fields")),
            (other, Step::Position(position)) => {
                return Err(format!("[{position}] is asked of {other}, which is no list"));
            }
        };
    }
    Ok(place)
}

fn item(items: &mut Vec<Value>, position: usize) -> Result<&mut Value, String> {
    let length = items.len();
    if position == length {
        items.push(Value::Null);
    }
    items
        .get_mut(position)
        .ok_or_else(|| format!("the list has {length} items, so the next one is [{length}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(set: &[&str]) -> Result<Value, String> {
        let set: Vec<String> = set.iter().map(|pair| (*pair).to_owned()).collect();
        let edit = Edit::of(&set, None).map_err(|error| error.to_string())?.unwrap();
        let mut parameters = json!({"to": "ann", "args": ["a", {"b": 1}], "none": null});
        edit.apply(&mut parameters).map(|()| parameters)
    }

    #[test]
    fn values_are_set_at_their_places() {
        let all = changed(&[
            "to=bob",
            "args[1].b=[2]",
            "args.0=5",
            "args[2]=\"7\"",
            "none.a.b=x y",
            "new={\"k\":1}",
        ]);
        assert_eq!(
            all.unwrap(),
            json!({"to": "bob", "args": [5, {"b": [2]}, "7"], "none": {"a": {"b": "x y"}}, "new": {"k": 1}})
        );
        assert_eq!(changed(&["to=a=b"]).unwrap()["to"], "a=b");
        assert_eq!(changed(&["to="]).unwrap()["to"], "");
    }

    #[test]
    fn a_wrong_place_is_named() {
        for (pair, part) in [
            ("to", "PATH=VALUE"),
            ("=5", "PATH=VALUE"),
            ("a..b=1", "name.name"),
            ("a.=1", "name.name"),
            ("args[x]=1", "name.name"),
            ("args[0=1", "name.name"),
            ("args[0]b=1", "name.name"),
            ("a.[0]=1", "name.name"),
            ("to.first=1", "--set to.first: `first` is asked of \"ann\""),
            ("to[0]=1", "no list"),
            ("args.x=1", "give a position"),
            ("args[3]=1", "has 2 items, so the next one is [2]"),
            ("[0]=1", "no list"),
        ] {
            let message = changed(&[pair]).unwrap_err();
            assert!(message.contains(part), "{pair}: {message}");
        }
    }

    #[test]
    fn whole_parameters_are_json() {
        let edit = Edit::of(&[], Some(r#"{"a":1}"#)).unwrap().unwrap();
        let mut parameters = json!([1]);
        edit.apply(&mut parameters).unwrap();
        assert_eq!(parameters, json!({"a": 1}));
        assert!(Edit::of(&[], Some("{a}")).is_err());
        assert!(Edit::of(&[], None).unwrap().is_none());
    }
}
