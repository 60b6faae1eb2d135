//! Tasks, queues and agents as users write them, over HTTP, in files and on the command line, and the checks that turn them
//! into a [`NewTask`](crate::NewTask), [`QueueSettings`](crate::queue::QueueSettings) or
//! [`AgentSettings`](crate::agent::AgentSettings). Every problem is named by its path.

mod agent;
mod breaker;
mod check;
mod parse;
mod patch;
mod queue;
mod task;

pub use agent::AgentInput;
pub use breaker::BreakerInput;
pub use check::{check_id, check_queue_id};
pub use parse::{Invalid, Problem, friendly, object, parse, parse_object};
pub use patch::Patch;
pub use queue::{QueueInput, RATE_STARTS_MAX, RateInput};
pub use task::{BatchInput, TaskInput, UniqueInput, check_new};

/// The eight task types.
pub const TASK_TYPES: [&str; 8] = [
    "code_analysis",
    "code_generation",
    "code_review",
    "testing",
    "deployment",
    "monitoring",
    "workflow",
    "custom",
];
/// Fields of a task that only the engine sets.
pub const ENGINE_FIELDS: [&str; 21] = [
    "id",
    "status",
    "state",
    "waiting_for",
    "attempt",
    "retry_count",
    "progress",
    "result",
    "error",
    "created_at",
    "ready_at",
    "started_at",
    "finished_at",
    "workflow_id",
    "parent_id",
    "schedule",
    "dead_lettered_at",
    "durable",
    "version",
    "lease",
    "node",
];
/// Longest handler, queue, key, tag, capability or person's name, in characters.
pub const NAME_MAX: usize = 200;
/// Longest task name, in characters.
pub const TITLE_MAX: usize = 500;
/// Longest description, in characters.
pub const DESCRIPTION_MAX: usize = 10_000;
/// Most tags, and most capabilities, of one task.
pub const TAGS_MAX: usize = 50;
/// Most capabilities of one agent.
pub const CAPABILITIES_MAX: usize = 100;
/// Most labels of one agent.
pub const LABELS_MAX: usize = 50;
/// Most retries of one task.
pub const RETRIES_MAX: u32 = 1_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::task::{Dependency, NewTask, Resources, Spec};
    use crate::time::Span;
    use crate::{Json, Priority, Time};

    fn problems(text: &str) -> Vec<String> {
        match parse::<BatchInput>(text.as_bytes()).and_then(|b| b.resolve(Time::EPOCH)) {
            Ok(_) => Vec::new(),
            Err(Invalid(problems)) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[track_caller]
    fn check(task: &str, problem: &str) {
        let found = problems(&format!(r#"{{"tasks":[{task}]}}"#));
        assert!(
            found.iter().any(|p| p.contains(problem)),
            "{task}: {found:?} should say {problem:?}"
        );
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        check(r#"{}"#, "tasks[0].handler: is required");
        check(r#"{"handler":"noop","id":"x"}"#, "`id` is set by the engine");
        check(
            r#"{"handler":"noop","colour":1}"#,
            "tasks[0].colour: unknown field `colour`",
        );
        check(
            r#"{"handler":"noop","priority":9}"#,
            "tasks[0].priority: 9 is not a priority",
        );
        check(r#"{"handler":"noop","priority":"huge"}"#, "`huge` is not a priority");
        check(r#"{"handler":"noop","max_retries":-1}"#, "tasks[0].max_retries");
        check(r#"{"handler":"noop","max_retries":5000}"#, "must be 0 to 1000");
        check(
            r#"{"handler":"noop","timeout":"soon"}"#,
            "tasks[0].timeout: `soon` is not a duration",
        );
        check(r#"{"handler":"noop","run_at":"2026"}"#, "RFC 3339");
        check(
            r#"{"handler":"noop","run_at":"2026-01-01T00:00:00Z","delay":3}"#,
            "tasks[0].delay",
        );
        check(
            r#"{"handler":"noop","depends_on":["nobody"]}"#,
            "tasks[0].depends_on[0]: `nobody` is neither",
        );
        check(
            r#"{"handler":"noop","parameters":{"a":"\u0000"}}"#,
            "tasks[0].parameters: contains \\u0000",
        );
        check(
            r#"{"handler":"noop","name":"a\u0000b"}"#,
            "tasks[0].name: contains the NUL",
        );
        check(r#"{"handler":"no op"}"#, "tasks[0].handler: must be 1 to 200");
        check(r#"{"task_type":"cooking"}"#, "is not a task type");
        check(r#"{"handler":"noop","retry":{"factor":0}}"#, "tasks[0].retry.factor");
        check(r#"{"handler":"noop","retry":{"speed":0}}"#, "tasks[0].retry.speed");
        check(
            r#"{"handler":"noop","unique":{"key":""}}"#,
            "tasks[0].unique.key: must not be empty",
        );
        check(
            r#"{"handler":"noop","resources":{"cpu_cores":-1}}"#,
            "resources.cpu_cores",
        );
        check(
            r#"{"handler":"noop","units":0}"#,
            "tasks[0].units: must be 1 to 1000000",
        );
        check(r#"{"handler":"noop","units":1000001}"#, "tasks[0].units: must be 1 to");
        check(r#"{"handler":"noop","units":1.5}"#, "tasks[0].units: invalid type");
        check(r#"{"handler":"noop","deadline":"9999-01-01T00:00:00Z"}"#, "century");
    }

    #[test]
    fn an_array_is_no_object() {
        check("[]", "tasks[0]: invalid type: sequence, expected an object");
        check(r#"{"handler":"noop","unique":["k"]}"#, "tasks[0].unique: invalid type");
        check(r#"{"handler":"noop","retry":[]}"#, "tasks[0].retry: invalid type");
        check(
            r#"{"handler":"noop","resources":[]}"#,
            "tasks[0].resources: invalid type",
        );
        assert!(parse_object::<Patch>(b"[]").is_err());
        assert!(parse_object::<Patch>(br#"{"name":"x"}"#).is_ok());
    }

    #[test]
    fn missing_and_repeated_fields_are_named_by_their_own_path() {
        check(
            r#"{"handler":"noop","unique":{}}"#,
            "tasks[0].unique.key: missing field `key`",
        );
        check(
            r#"{"handler":"noop","handler":"noop"}"#,
            "tasks[0].handler: duplicate field `handler`",
        );
        assert_eq!(parse::<BatchInput>(b"{}").unwrap_err().0[0].path, "tasks");
    }

    #[test]
    fn all_problems_of_a_task_are_reported_at_once() {
        let found = problems(r#"{"tasks":[{"handler":"a b","queue":"","tags":[""],"max_retries":2000}]}"#);
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn a_task_that_a_program_made_is_checked_too() {
        let mut task = NewTask::new(Spec::new("no op", Json::null()));
        let details = task.spec.details_mut();
        details.queue_timeout = Some(Span(Duration::ZERO));
        details.units = Some(0);
        details.requires = vec!["".into()];
        details.agent_id = Some(String::new());
        details.resources = Some(Resources {
            memory_gb: Some(f64::NAN),
            ..Resources::default()
        });
        let Err(Invalid(problems)) = check_new(&task, Time::EPOCH) else {
            panic!("it should be refused");
        };
        let paths: Vec<&str> = problems.iter().map(|problem| &*problem.path).collect();
        let wrong = [
            "handler",
            "queue_timeout",
            "units",
            "requires[0]",
            "agent_id",
            "resources.memory_gb",
        ];
        assert_eq!(paths, wrong);
    }

    #[test]
    fn references_resolve_within_the_batch_and_task_type_stands_in_for_the_handler() {
        let batch: BatchInput = parse(
            br#"{"tasks":[{"ref":"a","handler":"noop"},{"task_type":"testing","dependencies":["a","a"],"priority":"medium"}]}"#,
        )
        .unwrap();
        let tasks = batch.resolve(Time::EPOCH).unwrap();
        assert_eq!(tasks[1].depends_on.as_slice(), [Dependency::Item(0)]);
        assert_eq!(&*tasks[1].spec.handler, "testing");
        assert_eq!(tasks[1].spec.priority, Priority::Normal);
        assert!(tasks[0].spec.details.is_none());
    }

    #[test]
    fn a_task_can_be_written_down_and_read_again() {
        let batch = r#"{"tasks":[{"ref":"0","handler":"a","priority":"high","queue":"q","timeout":0,"key":"k"},
            {"ref":"1","handler":"b","task_type":"testing","name":"n","description":"d","parameters":{"x":[1,2.5]},
             "metadata":1,"execution_context":{},"depends_on":["0","0198c1f0-7f3c-7abc-8def-0123456789ab"],
             "on_dependency_failure":"run","run_at":"1970-01-02T00:00:00Z","deadline":"1970-01-03T00:00:00Z",
             "expires_at":"1970-01-04T00:00:00Z","timeout":1.5,"queue_timeout":2,"heartbeat_timeout":3,"max_retries":7,
             "on_limit":"reject","units":9,"retry":{"strategy":"fixed","delay":4},"requires":["r"],"agent_id":"g",
             "unique":{"key":"u","ttl":5,"on_conflict":"replace"},"resources":{"cpu_cores":2},"created_by":"c",
             "assigned_to":"s","tags":["t"]}]}"#;
        let tasks = parse::<BatchInput>(batch.as_bytes())
            .unwrap()
            .resolve(Time::EPOCH)
            .unwrap();
        let inputs = tasks.iter().enumerate().map(|(index, task)| TaskInput {
            reference: Some(index.to_string()),
            ..TaskInput::from(task.clone())
        });
        let written = serde_json::to_string(&BatchInput {
            tasks: inputs.collect(),
        })
        .unwrap();
        let again = parse::<BatchInput>(written.as_bytes())
            .unwrap()
            .resolve(Time::EPOCH)
            .unwrap();
        assert_eq!(tasks, again);
    }

    #[test]
    fn a_patch_can_clear_what_may_be_absent() {
        let patch: Patch = parse(br#"{"name":null,"deadline":null,"priority":"high"}"#).unwrap();
        assert_eq!((patch.name.clone(), patch.deadline), (Some(None), Some(None)));
        let mut spec = Spec::new("noop", Json::null());
        spec.details_mut().name = Some("x".into());
        patch.apply_to(&mut spec);
        assert!(spec.details.is_none());
        assert_eq!(spec.priority, Priority::High);
        assert!(
            parse::<Patch>(br#"{"status":"completed"}"#)
                .unwrap_err()
                .to_string()
                .contains("set by the engine")
        );
    }
}
