//! From the text of a plan file to the tasks of a run, with every problem at its line and column.

use std::collections::HashMap;

use pensum_core::graph::find_cycle_in;
use pensum_core::input::{self, BatchInput, Invalid, Problem, TaskInput};
use pensum_core::{Json, Name, NewTask, Time};

use super::interpolate::Variables;
use crate::yaml::{self, Fault, Key, Node, Value, nearest};

/// The keys of a plan file.
const PLAN_KEYS: [&str; 4] = ["plan", "description", "variables", "tasks"];
/// Variables that every plan has.
pub(crate) const BUILT_IN: [&str; 2] = ["plan_dir", "run_dir"];
/// How many faults are shown at once.
const FAULTS_MAX: usize = 20;

/// A plan file as it stands: read, its outline checked, nothing filled in.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Its name, from the key `plan`.
    pub(crate) name: String,
    /// Declared variables with their defaults.
    variables: Vec<(Key, Node)>,
    /// The tasks by ref, in the order of the file.
    tasks: Vec<(Key, Node)>,
}

/// What a run gives to a plan.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    /// `--var` values by name, in the order of the command line.
    pub(crate) overrides: &'a [(String, String)],
    /// The value of `${plan_dir}`.
    pub(crate) plan_dir: String,
    /// The value of `${run_dir}`.
    pub(crate) run_dir: String,
    /// Handlers that can run here.
    pub(crate) handlers: &'a [Name],
    /// The present.
    pub(crate) now: Time,
}

/// A task of a plan, ready to be enqueued. Its dependencies are indexes into the same list.
#[derive(Debug)]
pub(crate) struct PlannedTask {
    /// Its name in the plan.
    pub(crate) reference: String,
    /// What to enqueue.
    pub(crate) task: NewTask,
}

impl Plan {
    /// Reads a plan file and checks its outline.
    ///
    /// # Errors
    /// Every fault that was found, in the order of the file.
    pub(crate) fn read(text: &str) -> Result<Plan, Vec<Fault>> {
        let root = yaml::read(text).map_err(|fault| vec![fault])?;
        let Some(entries) = root.entries() else {
            let message = format!(
                "a plan file is a map with the keys plan, variables and tasks, not {}",
                root.kind()
            );
            return Err(vec![Fault::new(root.at, message)]);
        };
        if let Some((key, _)) = root.entry("workflow").or_else(|| root.entry("steps")) {
            let message = "this is a workflow file, and this version runs plan files only: list the work under \
                           `tasks:` with `depends_on`, and name it with `plan:`";
            return Err(vec![Fault::new(key.at, message)]);
        }
        let mut faults = Vec::new();
        for (key, _) in entries
            .iter()
            .filter(|(key, _)| !PLAN_KEYS.contains(&key.name.as_str()))
        {
            let near = nearest(&key.name, PLAN_KEYS)
                .map(|n| format!("did you mean `{n}`? "))
                .unwrap_or_default();
            let message = format!(
                "a plan has no key `{}`; {near}its keys are {}",
                key.name,
                PLAN_KEYS.join(", ")
            );
            faults.push(Fault::new(key.at, message));
        }
        let name = plan_name(&root, &mut faults);
        let variables = declared(&root, &mut faults);
        let tasks = tasks(&root, &mut faults);
        if faults.is_empty() {
            Ok(Plan { name, variables, tasks })
        } else {
            Err(in_order(faults))
        }
    }

    /// The refs of the tasks, in the order of the file.
    pub(crate) fn references(&self) -> impl Iterator<Item = &str> + Clone {
        self.tasks.iter().map(|(key, _)| key.name.as_str())
    }

    /// Where a problem lies that was found in the whole batch: `tasks[2].parameters.program`.
    pub(crate) fn fault(&self, problem: &Problem) -> Fault {
        let found = problem
            .path
            .strip_prefix("tasks[")
            .and_then(|rest| rest.split_once(']'));
        let Some(((key, node), rest)) =
            found.and_then(|(index, rest)| Some((self.tasks.get(index.parse::<usize>().ok()?)?, rest)))
        else {
            return Fault::new(yaml::Place::default(), problem.to_string());
        };
        let problem = Problem {
            path: rest.trim_start_matches('.').to_owned(),
            message: problem.message.clone(),
        };
        node.fault(&format!("tasks.{}", key.name), &problem)
    }

    /// Fills in the variables and checks every task.
    ///
    /// # Errors
    /// Every fault that was found, in the order of the file.
    pub(crate) fn resolve(&self, setting: &Setting<'_>) -> Result<Vec<PlannedTask>, Vec<Fault>> {
        let mut faults = Vec::new();
        let variables = self.variables(setting, &mut faults);
        let mut inputs = Vec::with_capacity(self.tasks.len());
        for (key, node) in &self.tasks {
            let mut node = node.clone();
            let before = faults.len();
            variables.fill_task(&mut node, &mut faults);
            if faults.len() == before {
                inputs.extend(self.input(key, &node, setting, &mut faults));
            }
        }
        if faults.is_empty() {
            faults.extend(self.cycle(&inputs));
        }
        if !faults.is_empty() {
            return Err(in_order(faults));
        }
        let references: Vec<String> = self.references().map(str::to_owned).collect();
        let tasks = BatchInput { tasks: inputs }
            .resolve(setting.now)
            .map_err(|Invalid(problems)| in_order(problems.iter().map(|p| self.fault(p)).collect()))?;
        Ok(references
            .into_iter()
            .zip(tasks)
            .map(|(reference, task)| PlannedTask { reference, task })
            .collect())
    }

    fn variables(&self, setting: &Setting<'_>, faults: &mut Vec<Fault>) -> Variables {
        let mut variables = Variables::default();
        variables.set_text("plan_dir", setting.plan_dir.as_str());
        variables.set_text("run_dir", setting.run_dir.as_str());
        for (name, _) in setting.overrides {
            if !self.variables.iter().any(|(key, _)| key.name == *name) {
                let declared: Vec<&str> = self.variables.iter().map(|(key, _)| key.name.as_str()).collect();
                let declared = if declared.is_empty() {
                    "it declares none".to_owned()
                } else {
                    format!("it declares {}", declared.join(", "))
                };
                let message = format!("--var {name}: the plan declares no variable `{name}`; {declared}");
                faults.push(Fault::new(yaml::Place::default(), message));
            }
        }
        // A default may use the built-in variables and those declared above it.
        for (key, default) in &self.variables {
            match setting.overrides.iter().rev().find(|(name, _)| *name == key.name) {
                Some((_, text)) => match overriding(default, text) {
                    Ok(value) => variables.set(&key.name, value),
                    Err(message) => {
                        faults.push(Fault::new(default.at, format!("--var {}={text}: {message}", key.name)));
                        variables.set(&key.name, default.clone());
                    }
                },
                None => {
                    let mut value = default.clone();
                    variables.fill(&mut value, faults);
                    variables.set(&key.name, value);
                }
            }
        }
        variables
    }

    fn input(&self, key: &Key, node: &Node, setting: &Setting<'_>, faults: &mut Vec<Fault>) -> Option<TaskInput> {
        let named = format!("tasks.{}", key.name);
        let mut input: TaskInput = match input::parse(node.json().as_bytes()) {
            Ok(input) => input,
            Err(Invalid(problems)) => {
                faults.extend(problems.iter().map(|problem| node.fault(&named, problem)));
                return None;
            }
        };
        let before = faults.len();
        let mut fail = |path: &str, message: String| {
            faults.push(node.fault(
                &named,
                &Problem {
                    path: path.to_owned(),
                    message,
                },
            ));
        };
        if input.reference.is_some() {
            fail("ref", "the task's key in the plan is its ref; leave it out".to_owned());
        }
        if !input.requires.is_empty() {
            fail(
                "requires",
                "a plan runs on this machine alone, so it cannot ask for capabilities; remove it".to_owned(),
            );
        }
        if input.queue.is_some() {
            fail(
                "queue",
                "the tasks of a run wait in a queue of its own; leave it out".to_owned(),
            );
        }
        if input.unique.is_some() {
            fail("unique", "each run makes tasks of its own; leave it out".to_owned());
        }
        if input.metadata.as_ref().is_some_and(|metadata| !is_free_map(metadata)) {
            fail(
                "metadata",
                "must be a map without the key `pensum`, under which the run notes its own facts".to_owned(),
            );
        }
        for (position, dependency) in input.depends_on.iter().enumerate() {
            if !self.references().any(|reference| reference == dependency) {
                let near = nearest(dependency, self.references()).map(|n| format!("; did you mean `{n}`?"));
                let near = near.unwrap_or_else(|| format!("; the tasks are {}", few(self.references())));
                fail(
                    &format!("depends_on[{position}]"),
                    format!("the plan has no task `{dependency}`{near}"),
                );
            }
        }
        if let Some(handler) = input.handler.as_deref().or(input.task_type.as_deref())
            && !setting.handlers.iter().any(|known| **known == *handler)
        {
            let known = setting.handlers.iter().map(|h| &**h);
            let near = nearest(handler, known.clone())
                .map(|n| format!("did you mean `{n}`? "))
                .unwrap_or_default();
            let path = if input.handler.is_some() {
                "handler"
            } else {
                "task_type"
            };
            fail(
                path,
                format!("there is no handler `{handler}` here; {near}known are {}", few(known)),
            );
        }
        if faults.len() > before {
            return None;
        }
        input.reference = Some(key.name.clone());
        input.name.get_or_insert_with(|| key.name.clone());
        Some(input)
    }

    fn cycle(&self, inputs: &[TaskInput]) -> Option<Fault> {
        let index: HashMap<&str, usize> = self
            .references()
            .enumerate()
            .map(|(i, reference)| (reference, i))
            .collect();
        let edges = |task: usize| {
            inputs[task]
                .depends_on
                .iter()
                .filter_map(|name| index.get(name.as_str()).copied())
        };
        let cycle = find_cycle_in(inputs.len(), edges)?;
        let names: Vec<&str> = cycle.iter().map(|task| self.tasks[*task].0.name.as_str()).collect();
        let (key, node) = &self.tasks[cycle[0]];
        let message = format!(
            "tasks.{}.depends_on: the tasks wait for each other: {}; remove one of these dependencies",
            key.name,
            names.join(" → ")
        );
        Some(Fault::new(node.locate("depends_on", false), message))
    }
}

/// The value that `--var` gives to a variable with this default: a text, unless the default is of another kind.
fn overriding(default: &Node, text: &str) -> Result<Node, String> {
    let as_text = Node {
        at: default.at,
        value: Value::Text(text.to_owned()),
    };
    if matches!(default.value, Value::Null | Value::Text(_)) {
        return Ok(as_text);
    }
    match yaml::read(text) {
        Ok(node) if std::mem::discriminant(&node.value) == std::mem::discriminant(&default.value) => Ok(Node {
            at: default.at,
            value: node.value,
        }),
        _ => Err(format!(
            "the variable is {} in the plan, and this is not",
            default.kind()
        )),
    }
}

fn plan_name(root: &Node, faults: &mut Vec<Fault>) -> String {
    let Some((key, node)) = root.entry("plan") else {
        faults.push(Fault::new(
            root.at,
            "the key `plan` is missing: it names the plan, as in `plan: Nightly checks`",
        ));
        return String::new();
    };
    match node.text() {
        Some(name) if !name.trim().is_empty() && name.chars().count() <= 150 && !name.chars().any(char::is_control) => {
            name.trim().to_owned()
        }
        _ => {
            faults.push(Fault::new(key.at, "plan: must be a name of 1 to 150 characters"));
            String::new()
        }
    }
}

fn declared(root: &Node, faults: &mut Vec<Fault>) -> Vec<(Key, Node)> {
    let Some(node) = root.get("variables") else {
        return Vec::new();
    };
    let entries = match &node.value {
        Value::Map(entries) => entries.clone(),
        Value::Null => return Vec::new(),
        _ => {
            let message = format!(
                "variables: must be a map from names to default values, not {}",
                node.kind()
            );
            faults.push(Fault::new(node.at, message));
            return Vec::new();
        }
    };
    for (key, _) in &entries {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if key.name.is_empty() || !key.name.chars().all(fits) {
            let message = format!("variables.{}: a variable's name is letters, digits, _ and -", key.name);
            faults.push(Fault::new(key.at, message));
        } else if BUILT_IN.contains(&key.name.as_str()) {
            let message = format!("variables.{}: this variable is built in; use another name", key.name);
            faults.push(Fault::new(key.at, message));
        }
    }
    entries
}

fn tasks(root: &Node, faults: &mut Vec<Fault>) -> Vec<(Key, Node)> {
    let Some((key, node)) = root.entry("tasks") else {
        faults.push(Fault::new(
            root.at,
            "the key `tasks` is missing: it maps the name of each task to the task",
        ));
        return Vec::new();
    };
    let entries = match node.entries() {
        Some(entries) if !entries.is_empty() => entries.to_vec(),
        _ => {
            faults.push(Fault::new(
                key.at,
                "tasks: must be a map from the name of each task to the task, at least one",
            ));
            return Vec::new();
        }
    };
    for (key, node) in &entries {
        if key.name.trim().is_empty() || key.name.chars().count() > 150 || key.name.chars().any(char::is_control) {
            faults.push(Fault::new(key.at, "tasks: a task's name must be 1 to 150 characters"));
        } else if node.entries().is_none() {
            let message = format!(
                "tasks.{}: must be a map such as {{ handler: noop }}, not {}",
                key.name,
                node.kind()
            );
            faults.push(Fault::new(node.at, message));
        }
    }
    entries
}

fn is_free_map(metadata: &Json) -> bool {
    metadata
        .value()
        .as_object()
        .is_some_and(|map| !map.contains_key("pensum"))
}

/// The first few of many names.
fn few<'a>(names: impl Iterator<Item = &'a str> + Clone) -> String {
    let shown: Vec<&str> = names.clone().take(12).collect();
    let more = names.count() - shown.len();
    if more == 0 {
        shown.join(", ")
    } else {
        format!("{} and {more} more", shown.join(", "))
    }
}

fn in_order(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| fault.at);
    if faults.len() > FAULTS_MAX {
        let more = faults.len() - FAULTS_MAX;
        faults.truncate(FAULTS_MAX);
        faults.push(Fault::new(yaml::Place::default(), format!("… and {more} more")));
    }
    faults
}

/// A digest of a plan's text, to notice that the file changed since a run started: FNV-1a with 64 bits.
pub(crate) fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pensum_core::task::Dependency;

    fn resolve(text: &str, overrides: &[(&str, &str)]) -> Result<Vec<PlannedTask>, Vec<String>> {
        let handlers = [Name::from("command"), Name::from("noop")];
        let overrides: Vec<(String, String)> = overrides
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let setting = Setting {
            overrides: &overrides,
            plan_dir: "/plans".to_owned(),
            run_dir: "/runs/1".to_owned(),
            handlers: &handlers,
            now: Time::EPOCH,
        };
        let named = |faults: Vec<Fault>| faults.iter().map(|f| f.describe("p.yaml")).collect::<Vec<_>>();
        Plan::read(text).map_err(named)?.resolve(&setting).map_err(named)
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let faults = resolve(text, &[]).unwrap_err();
        assert!(
            faults.iter().any(|fault| fault.starts_with(expected)),
            "{faults:#?} should hold {expected}"
        );
    }

    const TWO_STEPS: &str = "plan: Two steps\nvariables: { dir: \".\", n: 2 }\ntasks:\n  list:  { handler: command, parameters: { program: ls, args: [\"${dir}\"] } }\n  count: { handler: command, depends_on: [list], max_retries: \"${n}\", parameters: { program: sh, args: [-c, \"ls ${run_dir} ${plan_dir} | wc -l\"] } }\n";

    #[test]
    fn a_plan_becomes_tasks_that_depend_on_each_other() {
        let tasks = resolve(TWO_STEPS, &[("dir", "/x"), ("n", "7")]).unwrap();
        assert_eq!(tasks[0].task.spec.parameters.get(), r#"{"program":"ls","args":["/x"]}"#);
        assert_eq!(tasks[1].task.depends_on.as_slice(), [Dependency::Item(0)]);
        assert_eq!(tasks[1].task.spec.max_retries, Some(7));
        assert!(
            tasks[1]
                .task
                .spec
                .parameters
                .get()
                .contains("ls /runs/1 /plans | wc -l")
        );
        assert_eq!(tasks[1].task.spec.display_name(), "count");
    }

    #[test]
    fn every_fault_has_its_line_and_column() {
        check(
            "plan: x\ntasks:\n  a: { handler: noop, priority: 9 }\n",
            "p.yaml:3:33: tasks.a.priority: 9 is not a priority",
        );
        check(
            "plan: x\ntasks:\n  a:\n    handler: noop\n    colour: red\n",
            "p.yaml:5:5: tasks.a.colour: unknown field",
        );
        check(
            "plan: x\ntasks:\n  a: { handler: noop, id: 1 }\n",
            "p.yaml:3:23: tasks.a.id: `id` is set by the engine",
        );
        check(
            "plan: x\ntasks:\n  a: { handler: noop, depends_on: [b] }\n",
            "p.yaml:3:36: tasks.a.depends_on[0]: the plan has no task `b`",
        );
        check(
            "plan: x\ntasks:\n  a: { handler: nop }\n",
            "p.yaml:3:17: tasks.a.handler: there is no handler `nop` here; did you mean `noop`?",
        );
        check(
            "plan: x\ntasks:\n  a: { handler: noop, name: \"${nmae}\" }\n",
            "p.yaml:3:29: there is no variable `nmae`; known are plan_dir, run_dir",
        );
        check(
            "plan: x\nvars: {}\ntasks:\n  a: { handler: noop }\n",
            "p.yaml:2:1: a plan has no key `vars`",
        );
        check(
            "plan: x\ntasks:\n  a: { handler: noop, tags: [\"\"] }\n",
            "p.yaml:3:30: tasks.a.tags[0]: must not be empty",
        );
        check(
            "plan: x\ntasks:\n  a: { handler: noop }\n  a: { handler: noop }\n",
            "p.yaml:4:3: ",
        );
        check("workflow: x\nsteps: []\n", "p.yaml:1:1: this is a workflow file");
        check("plan: x\ntasks: []\n", "p.yaml:2:1: tasks: must be a map");
        check(
            "tasks:\n  a: { handler: noop }\n",
            "p.yaml:1:1: the key `plan` is missing",
        );
        check(
            "plan: x\nvariables: { run_dir: 1 }\ntasks:\n  a: { handler: noop }\n",
            "p.yaml:2:14: variables.run_dir: this variable is built in",
        );
        check("- 1\n", "p.yaml:1:1: a plan file is a map");
    }

    #[test]
    fn a_cycle_is_named_by_its_refs() {
        check(
            "plan: x\ntasks:\n  a: { handler: noop, depends_on: [b] }\n  b: { handler: noop, depends_on: [a] }\n",
            "p.yaml:3:35: tasks.a.depends_on: the tasks wait for each other: a → b → a",
        );
    }

    #[test]
    fn a_variable_must_be_declared_and_of_the_same_kind() {
        let faults = resolve(TWO_STEPS, &[("dri", "x"), ("n", "many")]).unwrap_err();
        assert!(
            faults[0].contains("--var dri: the plan declares no variable `dri`; it declares dir, n"),
            "{faults:?}"
        );
        assert!(
            faults[1].starts_with("p.yaml:2:27: --var n=many: the variable is a number"),
            "{faults:?}"
        );
    }

    #[test]
    fn problems_of_the_whole_batch_find_their_task() {
        let plan = Plan::read(TWO_STEPS).unwrap();
        let fault = plan.fault(&Problem {
            path: "tasks[1].parameters.program".into(),
            message: "is odd".into(),
        });
        assert_eq!(fault.describe("p"), "p:5:94: tasks.count.parameters.program: is odd");
    }

    #[test]
    fn the_digest_changes_with_the_text() {
        assert_eq!(digest("a"), "af63dc4c8601ec8c");
        assert_ne!(digest("a"), digest("b"));
    }
}
