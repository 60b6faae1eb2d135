//! Which tasks: the filter of lists and bulk commands.

use clap::Args;
use pensum_core::{Priority, Status, TaskId, Time};
use serde_json::{Map, Value};

use crate::cli::exit::Failure;
use crate::yaml::nearest;

/// The fields of a filter.
const FIELDS: [&str; 16] = [
    "status",
    "queue",
    "handler",
    "task_type",
    "priority",
    "assigned_to",
    "agent_id",
    "created_by",
    "key",
    "tag",
    "workflow_id",
    "parent_id",
    "created_after",
    "created_before",
    "dead_lettered",
    "q",
];

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// With any of these statuses.
    #[arg(long, value_delimiter = ',')]
    status: Vec<Status>,
    /// In this queue.
    #[arg(long)]
    queue: Option<String>,
    /// Run by this handler.
    #[arg(long)]
    handler: Option<String>,
    /// Of this type.
    #[arg(long, alias = "type")]
    task_type: Option<String>,
    /// Of this priority.
    #[arg(long)]
    priority: Option<Priority>,
    /// Assigned to this one.
    #[arg(long)]
    assigned_to: Option<String>,
    /// Meant for this agent.
    #[arg(long)]
    agent_id: Option<String>,
    /// Created by this one.
    #[arg(long)]
    created_by: Option<String>,
    /// With this key.
    #[arg(long)]
    key: Option<String>,
    /// With this tag.
    #[arg(long)]
    tag: Option<String>,
    /// Of this workflow.
    #[arg(long)]
    workflow_id: Option<TaskId>,
    /// Children of this task.
    #[arg(long)]
    parent_id: Option<TaskId>,
    /// Created at or after this time.
    #[arg(long, value_name = "TIME", value_parser = Time::parse)]
    created_after: Option<Time>,
    /// Created before this time.
    #[arg(long, value_name = "TIME", value_parser = Time::parse)]
    created_before: Option<Time>,
    /// In the dead-letter queue, or not.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    dead_lettered: Option<bool>,
    /// With this text in name, description or handler.
    #[arg(short, long = "search", value_name = "TEXT")]
    q: Option<String>,
}

impl FilterArgs {
    /// As parameters of a request.
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let statuses: Vec<&str> = self.status.iter().map(|status| status.as_str()).collect();
        let pairs = [
            ("status", (!statuses.is_empty()).then(|| statuses.join(","))),
            ("queue", self.queue.clone()),
            ("handler", self.handler.clone()),
            ("task_type", self.task_type.clone()),
            ("priority", self.priority.map(|priority| priority.to_string())),
            ("assigned_to", self.assigned_to.clone()),
            ("agent_id", self.agent_id.clone()),
            ("created_by", self.created_by.clone()),
            ("key", self.key.clone()),
            ("tag", self.tag.clone()),
            ("workflow_id", self.workflow_id.map(|id| id.to_string())),
            ("parent_id", self.parent_id.map(|id| id.to_string())),
            ("created_after", self.created_after.map(|time| time.to_string())),
            ("created_before", self.created_before.map(|time| time.to_string())),
            ("dead_lettered", self.dead_lettered.map(|value| value.to_string())),
            ("q", self.q.clone()),
        ];
        pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// Reads `status=ready,queue=x`. A field without `=` goes on with the list before it: `status=ready,pending`.
pub(crate) fn parse_pairs(text: &str) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut pairs: Vec<(&'static str, String)> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, value)) = part.split_once('=') else {
            match pairs.last_mut() {
                Some(("status", list)) => list.push_str(&format!(",{part}")),
                _ => {
                    return Err(Failure::usage(format!(
                        "--filter: `{part}` is not of the form field=value"
                    )));
                }
            }
            continue;
        };
        let Some(field) = FIELDS.iter().find(|field| **field == name.trim()) else {
            let near = nearest(name, FIELDS)
                .map(|near| format!("did you mean `{near}`? "))
                .unwrap_or_default();
            let message = format!(
                "--filter: there is no field `{name}`; {near}the fields are {}",
                FIELDS.join(", ")
            );
            return Err(Failure::usage(message));
        };
        if pairs.iter().any(|(seen, _)| seen == field) {
            return Err(Failure::usage(format!("--filter: `{field}` is given twice")));
        }
        pairs.push((field, value.trim().to_owned()));
    }
    Ok(pairs)
}

/// The filter as the body of a bulk request has it.
pub(crate) fn body(pairs: &[(&'static str, String)]) -> Result<Value, Failure> {
    let mut filter = Map::new();
    for (name, value) in pairs {
        let value = match *name {
            "status" => Value::from(
                value
                    .split(',')
                    .map(|status| status.trim().to_ascii_lowercase())
                    .collect::<Vec<_>>(),
            ),
            "dead_lettered" => Value::from(
                value
                    .parse::<bool>()
                    .map_err(|_| Failure::usage("--filter: dead_lettered is true or false"))?,
            ),
            _ => Value::from(value.as_str()),
        };
        filter.insert((*name).to_owned(), value);
    }
    Ok(Value::Object(filter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_text_becomes_fields() {
        let pairs = parse_pairs("status=ready,pending, queue=mail,dead_lettered=true").unwrap();
        assert_eq!(
            body(&pairs).unwrap().to_string(),
            r#"{"dead_lettered":true,"queue":"mail","status":["ready","pending"]}"#
        );
    }

    #[test]
    fn a_wrong_filter_says_what_is_known() {
        assert!(
            parse_pairs("staus=ready")
                .unwrap_err()
                .message
                .contains("did you mean `status`?")
        );
        assert!(parse_pairs("ready").unwrap_err().message.contains("field=value"));
        assert!(parse_pairs("queue=a,queue=b").unwrap_err().message.contains("twice"));
    }
}
