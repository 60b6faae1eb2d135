//! The identity of a run, and how a run is found again.
//!
//! Each task of a run waits in the queue `run:ID`, bears the tags `run:ID` and `plan:NAME`, and says in its metadata
//! under `pensum` which plan, file, run and ref it belongs to. Nothing else is kept about a run: its tasks are all
//! there is to know, and they are in the store in one transaction or not at all.

use std::collections::HashMap;
use std::path::Path;

use pensum_core::query::PAGE_MAX;
use pensum_core::store::{Call, Command, Rejected};
use pensum_core::{Json, Name, Page, State, Store, StoreError, TaskFilter, TaskId, TaskRecord, Time};
use pensum_engine::{Engine, EngineError};
use serde::{Deserialize, Serialize};

use super::parse::PlannedTask;

/// The namespace of runs.
const NAMESPACE: &str = "default";

/// What the metadata of every task of a run says under `pensum`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The run.
    pub(crate) run: String,
    /// The plan's name.
    pub(crate) plan: String,
    /// The task's name in the plan.
    #[serde(rename = "ref")]
    pub(crate) reference: String,
    /// The plan file, as a canonical path.
    pub(crate) file: String,
    /// The digest of the file's text when the run started.
    pub(crate) digest: String,
}

/// A run and its tasks, in the order of the plan.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The run.
    pub(crate) id: String,
    /// The plan's name.
    pub(crate) plan: String,
    /// The digest of the file's text when the run started.
    pub(crate) digest: String,
    /// The tasks with their refs.
    pub(crate) tasks: Vec<(String, TaskRecord)>,
}

/// The id of a new run: a version 7 UUID, so that ids sort by time.
pub(crate) fn new_id(now: Time, bits: [u64; 2]) -> String {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&bits[0].to_be_bytes());
    random[8..].copy_from_slice(&bits[1].to_be_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random)
        .into_uuid()
        .to_string()
}

/// The queue of a run.
pub(crate) fn queue(run: &str) -> Name {
    Name::from(format!("run:{run}"))
}

/// Marks a task as one of a run. `directory` becomes the working directory of commands that name none, so that the
/// run goes on in the same place when it is resumed from elsewhere.
pub(crate) fn stamp(planned: &mut PlannedTask, mark: &Mark, directory: &Path) {
    let spec = &mut planned.task.spec;
    spec.queue = queue(&mark.run);
    // Other tasks of the store do not run meanwhile, so waiting for theirs would never end.
    spec.key = spec.key.take().map(|key| Name::from(format!("{}/{key}", mark.run)));
    if &*spec.handler == "command"
        && let serde_json::Value::Object(mut parameters) = spec.parameters.value()
        && !parameters.contains_key("cwd")
    {
        parameters.insert("cwd".to_owned(), directory.to_string_lossy().into());
        spec.parameters = Json::from(serde_json::Value::Object(parameters));
    }
    let details = spec.details_mut();
    details
        .tags
        .extend([format!("run:{}", mark.run), format!("plan:{}", mark.plan)]);
    let mark = Mark {
        reference: planned.reference.clone(),
        ..mark.clone()
    };
    let mut metadata = match details.metadata.as_ref().map(Json::value) {
        Some(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    metadata.insert("pensum".to_owned(), serde_json::to_value(mark).unwrap_or_default());
    details.metadata = Some(Json::from(serde_json::Value::Object(metadata)));
}

/// The mark of a task, when it belongs to a run.
pub(crate) fn mark_of(record: &TaskRecord) -> Option<Mark> {
    #[derive(Deserialize)]
    struct Metadata {
        pensum: Mark,
    }
    let metadata = record.spec.details.as_ref()?.metadata.as_ref()?;
    metadata.to::<Metadata>().ok().map(|metadata| metadata.pensum)
}

/// The newest run of a plan file in a store.
pub(crate) async fn find(store: &dyn Store, plan: &str, file: &str, now: Time) -> Result<Option<Run>, StoreError> {
    let filter = TaskFilter {
        tag: Some(format!("plan:{plan}")),
        ..TaskFilter::default()
    };
    let mut before_row = None;
    loop {
        let page = Page {
            limit: PAGE_MAX,
            before_row,
        };
        let found = store.tasks(NAMESPACE, filter.clone(), page, now).await?;
        if let Some(mark) = found.items.iter().filter_map(mark_of).find(|mark| mark.file == file) {
            return load(store, &mark, now).await.map(Some);
        }
        match found.next {
            Some(next) => before_row = Some(next),
            None => return Ok(None),
        }
    }
}

async fn load(store: &dyn Store, mark: &Mark, now: Time) -> Result<Run, StoreError> {
    let filter = TaskFilter {
        queue: Some(queue(&mark.run)),
        ..TaskFilter::default()
    };
    let mut tasks = Vec::new();
    let mut before_row = None;
    loop {
        let found = store
            .tasks(
                NAMESPACE,
                filter.clone(),
                Page {
                    limit: PAGE_MAX,
                    before_row,
                },
                now,
            )
            .await?;
        tasks.extend(
            found
                .items
                .into_iter()
                .filter_map(|task| Some((mark_of(&task)?.reference, task))),
        );
        match found.next {
            Some(next) => before_row = Some(next),
            None => break,
        }
    }
    // Lists run from the newest to the oldest.
    tasks.reverse();
    Ok(Run {
        id: mark.run.clone(),
        plan: mark.plan.clone(),
        digest: mark.digest.clone(),
        tasks,
    })
}

impl Run {
    /// True when every task completed.
    pub(crate) fn is_completed(&self) -> bool {
        self.tasks
            .iter()
            .all(|(_, task)| task.lifecycle.state == State::Completed)
    }

    /// Retries the failed and cancelled tasks, each after those that it depends on, so that it waits for them; answers
    /// how many.
    ///
    /// # Errors
    /// Those of the store, and a refusal of a retry.
    pub(crate) async fn retry_unsuccessful(&self, engine: &Engine) -> Result<usize, EngineError> {
        let levels = levels(&self.tasks.iter().map(|(_, task)| task).collect::<Vec<_>>());
        let mut ended: Vec<(usize, TaskId)> = self
            .tasks
            .iter()
            .zip(levels)
            .filter(|((_, task), _)| matches!(task.lifecycle.state, State::Failed | State::Cancelled))
            .map(|((_, task), level)| (level, task.id))
            .collect();
        ended.sort_unstable();
        for (_, task) in &ended {
            let call = Call::new("pensum-run", engine.now());
            for answer in engine.command(&call, vec![*task], Command::Retry).await? {
                match answer {
                    Ok(_) | Err(Rejected::Nothing(_)) => {}
                    Err(rejected) => return Err(rejected.into()),
                }
            }
        }
        Ok(ended.len())
    }
}

/// How deep each task stands in the graph: one more than the deepest that it depends on.
pub(crate) fn levels(tasks: &[&TaskRecord]) -> Vec<usize> {
    let index: HashMap<TaskId, usize> = tasks.iter().enumerate().map(|(at, task)| (task.id, at)).collect();
    let dependencies: Vec<Vec<usize>> = tasks
        .iter()
        .map(|task| task.depends_on.iter().filter_map(|id| index.get(id).copied()).collect())
        .collect();
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    let mut unmet: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    for (task, on) in dependencies.iter().enumerate() {
        on.iter().for_each(|dependency| dependants[*dependency].push(task));
    }
    let mut levels = vec![0; tasks.len()];
    let mut free: Vec<usize> = (0..tasks.len()).filter(|task| unmet[*task] == 0).collect();
    while let Some(task) = free.pop() {
        for dependant in &dependants[task] {
            levels[*dependant] = levels[*dependant].max(levels[task] + 1);
            unmet[*dependant] -= 1;
            if unmet[*dependant] == 0 {
                free.push(*dependant);
            }
        }
    }
    levels
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pensum_core::task::{Lifecycle, OnDependencyFailure};
    use pensum_core::{NewTask, Spec};

    pub(crate) fn record(row: i64, depends_on: &[i64]) -> TaskRecord {
        let id = |row| TaskId::mint(Time::EPOCH, row, 0);
        TaskRecord {
            id: id(row),
            created_at: Time::EPOCH,
            spec: Spec::new("noop", Json::empty_object()),
            lifecycle: Lifecycle::new(Time::EPOCH, None, depends_on.len() as u32, OnDependencyFailure::Cancel),
            progress: None,
            result: None,
            error: None,
            depends_on: depends_on.iter().copied().map(id).collect(),
            version: 1,
        }
    }

    #[test]
    fn a_task_stands_below_everything_it_depends_on() {
        let tasks = [
            record(1, &[]),
            record(2, &[1]),
            record(3, &[1, 2]),
            record(4, &[]),
            record(5, &[3, 4]),
        ];
        assert_eq!(levels(&tasks.iter().collect::<Vec<_>>()), [0, 1, 2, 0, 3]);
    }

    #[test]
    fn a_stamped_task_carries_its_run_and_keeps_its_own_metadata() {
        let mut spec = Spec::new("command", Json::parse(r#"{"program":"ls"}"#.to_owned()).unwrap());
        spec.key = Some(Name::from("lock"));
        spec.details_mut().metadata = Some(Json::parse(r#"{"mine":1}"#.to_owned()).unwrap());
        let mut planned = PlannedTask {
            reference: "list".to_owned(),
            task: NewTask::new(spec),
        };
        let mark = Mark {
            run: "r1".to_owned(),
            plan: "P".to_owned(),
            reference: String::new(),
            file: "/p.yaml".to_owned(),
            digest: "d".to_owned(),
        };
        stamp(&mut planned, &mark, Path::new("/work"));
        let spec = &planned.task.spec;
        assert_eq!((&*spec.queue, spec.key.as_deref()), ("run:r1", Some("r1/lock")));
        assert_eq!(spec.parameters.get(), r#"{"cwd":"/work","program":"ls"}"#);
        let record = TaskRecord {
            spec: spec.clone(),
            ..record(1, &[])
        };
        assert_eq!(
            mark_of(&record),
            Some(Mark {
                reference: "list".to_owned(),
                ..mark
            })
        );
        assert!(
            record
                .spec
                .details
                .unwrap()
                .metadata
                .unwrap()
                .get()
                .contains(r#""mine":1"#)
        );
    }

    #[test]
    fn run_ids_sort_by_time() {
        let early = new_id(Time::from_micros(1_000_000), [u64::MAX, 0]);
        let late = new_id(Time::from_micros(2_000_000), [0, 0]);
        assert!(early < late && early.len() == 36);
    }
}
