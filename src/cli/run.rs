//! `pensum run FILE`: a plan, from its file to its end.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pensum_core::input::{Invalid, Problem};
use pensum_core::store::Call;
use pensum_core::{Name, NewTask, State, Store, StoreError, TaskId, TaskRecord, Time};
use pensum_engine::{Engine, EngineError, EngineEvent, SLOTS_DEFAULT, handlers};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::client::{DB_DEFAULT, check_url, open_store, store_path};
use super::exit::{Exit, Failure};
use super::output::{self, Format};
use super::signals::Signals;
use super::{Global, machine, now};
use crate::plan::parse::{Plan, PlannedTask, Setting, digest};
use crate::plan::resume::{self, Mark, Run, new_id, stamp};
use crate::plan::summary::{Summary, table};
use crate::plan::view::{Board, Change, FRAME};

/// How long a lease of a run lasts: what was running when the process was killed runs again this long after the
/// resume at the latest.
const LEASE: Duration = Duration::from_secs(10);
/// How often tasks are read from the store in case an event was missed: small runs, large runs.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_MANY: Duration = Duration::from_secs(10);
const MANY: usize = 500;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The plan file.
    file: PathBuf,
    /// Give a variable of the plan a value. May be repeated.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = pair)]
    vars: Vec<(String, String)>,
    /// Go on with the newest run of this file; completed tasks are not run again.
    #[arg(long)]
    resume: bool,
    /// How many tasks run at once.
    #[arg(long, env = "PENSUM_SLOTS", default_value_t = SLOTS_DEFAULT)]
    slots: usize,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form name=value")),
    }
}

/// A plan file that was read.
struct Source {
    /// As it was named, for messages.
    shown: String,
    /// Canonical.
    path: PathBuf,
    plan: Plan,
    digest: String,
}

pub(crate) async fn run(global: &Global, args: Args) -> anyhow::Result<Exit> {
    let source = read(&args.file)?;
    let db = global.store().unwrap_or_else(|| DB_DEFAULT.to_owned());
    check_url(&db)?;
    let mut signals = Signals::new().context("cannot listen for signals")?;
    // A plan with faults must not even make a store.
    let id = new_id(now(), std::array::from_fn(|_| random_bits()));
    let prepared = if args.resume {
        None
    } else {
        Some(prepare(&source, &args, &db, &id)?)
    };

    machine::enforce_limits().log();
    let store = open(&db).await?;
    let (prepared, earlier) = match prepared {
        Some(prepared) => (Some(prepared), None),
        None => match resume::find(&*store, &source.plan.name, &source.path.to_string_lossy(), now()).await {
            Ok(Some(earlier)) => (None, Some(earlier)),
            Ok(None) => {
                output::warn(&format!("no earlier run of {} in {db}; starting one", source.shown));
                (Some(prepare(&source, &args, &db, &id)?), None)
            }
            Err(error) => return Err(Failure::from(error).into()),
        },
    };
    let run_id = earlier.as_ref().map_or(id, |run| run.id.clone());
    let engine = Engine::builder(Arc::clone(&store))
        .builtin_handlers()
        .slots(args.slots)
        .lease(LEASE)
        .queue(resume::queue(&run_id))
        .build();
    let result = match (earlier, prepared) {
        (Some(earlier), _) => go_on(&engine, &source, &args, earlier).await,
        (None, Some(tasks)) => start(&engine, &source, &db, run_id, tasks).await,
        (None, None) => Err(anyhow::anyhow!("there is neither a run to go on with nor one to start")),
    };
    let exit = match result {
        Ok((run, true)) => conclude(global, &db, &run),
        Ok((run, false)) => live(global, &args, &engine, &db, run, &mut signals).await,
        Err(error) => Err(error),
    };
    if let Err(error) = store.close().await {
        tracing::warn!(%error, "the store did not close cleanly");
    }
    exit
}

fn random_bits() -> u64 {
    use pensum_core::seam::Random;
    pensum_engine::SystemRandom.bits()
}

fn read(file: &Path) -> anyhow::Result<Source> {
    let shown = file.display().to_string();
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(Exit::NotFound, format!("there is no plan file {shown}")),
        _ => Failure::usage(format!("{shown} cannot be read: {error}")),
    };
    let path = file.canonicalize().map_err(unreadable)?;
    let text = std::fs::read_to_string(&path).map_err(unreadable)?;
    let plan = Plan::read(&text).map_err(|faults| Failure::of_faults(&shown, &faults))?;
    Ok(Source {
        digest: digest(&text),
        shown,
        path,
        plan,
    })
}

/// Where a run keeps its files: beside the store, or in the system's temporary directory for a store in memory.
fn run_directory(db: &str, run: &str) -> anyhow::Result<PathBuf> {
    let Some(file) = store_path(db) else {
        return Ok(std::env::temp_dir().join("pensum-runs").join(run));
    };
    let file = std::path::absolute(&file).with_context(|| format!("{} has no absolute path", file.display()))?;
    Ok(file.parent().unwrap_or(Path::new("/")).join("pensum-runs").join(run))
}

/// The tasks of a new run, checked.
fn prepare(source: &Source, args: &Args, db: &str, run: &str) -> anyhow::Result<Vec<PlannedTask>> {
    let known = handlers::builtin();
    let names: Vec<Name> = known.iter().map(|(name, _)| name.clone()).collect();
    let plan_dir = source.path.parent().unwrap_or(Path::new("/"));
    let setting = Setting {
        overrides: &args.vars,
        plan_dir: plan_dir.to_string_lossy().into_owned(),
        run_dir: run_directory(db, run)?.to_string_lossy().into_owned(),
        handlers: &names,
        now: now(),
    };
    let faulty = |faults: Vec<crate::yaml::Fault>| Failure::of_faults(&source.shown, &faults);
    let mut tasks = source.plan.resolve(&setting).map_err(faulty)?;
    let mut problems = Vec::new();
    for (index, planned) in tasks.iter().enumerate() {
        let Some((_, handler)) = known.iter().find(|(name, _)| *name == planned.task.spec.handler) else {
            continue;
        };
        if let Err(Invalid(found)) = handler.check(&planned.task.spec.parameters) {
            problems.extend(found.into_iter().map(|problem| {
                Problem {
                    path: format!("tasks[{index}].parameters.{}", problem.path)
                        .trim_end_matches('.')
                        .to_owned(),
                    message: problem.message,
                }
            }));
        }
    }
    if !problems.is_empty() {
        return Err(faulty(problems.iter().map(|problem| source.plan.fault(problem)).collect()).into());
    }
    let mark = Mark {
        run: run.to_owned(),
        plan: source.plan.name.clone(),
        reference: String::new(),
        file: source.path.to_string_lossy().into_owned(),
        digest: source.digest.clone(),
    };
    let directory = std::env::current_dir().context("the working directory is gone")?;
    tasks.iter_mut().for_each(|planned| stamp(planned, &mark, &directory));
    Ok(tasks)
}

async fn open(db: &str) -> anyhow::Result<Arc<dyn Store>> {
    let owner = format!("pensum run, process {}", std::process::id());
    open_store(db, &owner).await.map_err(|error| match error {
        StoreError::Locked { path, owner } => {
            let message = format!("{path} is in use by {owner}; stop that first, or give this run a store of its own with --db sqlite:FILE");
            Failure::new(Exit::Conflict, message).into()
        }
        error => Failure::from(error).into(),
    })
}

/// Enqueues a new run, all or nothing.
async fn start(
    engine: &Engine,
    source: &Source,
    db: &str,
    run: String,
    planned: Vec<PlannedTask>,
) -> anyhow::Result<(Run, bool)> {
    let directory = run_directory(db, &run)?;
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let (references, tasks): (Vec<String>, Vec<NewTask>) = planned.into_iter().map(|p| (p.reference, p.task)).unzip();
    let enqueued = match engine.enqueue(&Call::new("pensum-run", engine.now()), tasks).await {
        Ok(enqueued) => enqueued,
        Err(EngineError::Invalid(Invalid(problems))) => {
            let faults: Vec<_> = problems.iter().map(|problem| source.plan.fault(problem)).collect();
            return Err(Failure::of_faults(&source.shown, &faults).into());
        }
        Err(error) => return Err(Failure::from(error).into()),
    };
    let ids: Vec<TaskId> = enqueued.iter().map(|item| item.id).collect();
    let tasks = references.into_iter().zip(records(engine, &ids).await?).collect();
    Ok((
        Run {
            id: run,
            plan: source.plan.name.clone(),
            digest: source.digest.clone(),
            tasks,
        },
        false,
    ))
}

/// Takes an earlier run up again; true when nothing is left to do.
async fn go_on(engine: &Engine, source: &Source, args: &Args, mut run: Run) -> anyhow::Result<(Run, bool)> {
    if run.is_completed() {
        output::warn(&format!(
            "run {} completed already; there is nothing to go on with",
            run.id
        ));
        return Ok((run, true));
    }
    let done = run
        .tasks
        .iter()
        .filter(|(_, task)| task.lifecycle.state == State::Completed)
        .count();
    output::warn(&format!(
        "going on with run {}: {done} of {} tasks are completed",
        run.id,
        run.tasks.len()
    ));
    if run.digest != source.digest {
        output::warn(&format!(
            "note: {} changed since (digest {} then, {} now); the run goes on with the tasks it began with",
            source.shown, run.digest, source.digest
        ));
    }
    if !args.vars.is_empty() {
        output::warn("note: --var is ignored: the run goes on with the values it began with");
    }
    let retried = run.retry_unsuccessful(engine).await.map_err(Failure::from)?;
    if retried > 0 {
        tracing::info!(retried, "failed and cancelled tasks run again");
    }
    let ids: Vec<TaskId> = run.tasks.iter().map(|(_, task)| task.id).collect();
    for ((_, task), fresh) in run.tasks.iter_mut().zip(records(engine, &ids).await?) {
        *task = fresh;
    }
    Ok((run, false))
}

async fn records(engine: &Engine, ids: &[TaskId]) -> anyhow::Result<Vec<TaskRecord>> {
    let mut records = Vec::with_capacity(ids.len());
    for id in ids {
        let found = engine.store().task("default", *id).await.map_err(Failure::from)?;
        records.push(found.ok_or_else(|| Failure::new(Exit::NotFound, format!("task {id} of this run was deleted")))?);
    }
    Ok(records)
}

/// Runs the tasks to their end, showing how they get on.
async fn live(
    global: &Global,
    args: &Args,
    engine: &Engine,
    db: &str,
    mut run: Run,
    signals: &mut Signals,
) -> anyhow::Result<Exit> {
    let mut board = Board::new(&run.plan, &run.tasks, engine.now());
    let mut screen = Screen::new(global.output);
    let events = engine.subscribe();
    engine.start();
    let stopped = tokio::select! {
        result = watch(engine, &mut board, &mut screen, events) => match result {
            Ok(()) => None,
            Err(error) => {
                engine.shutdown(Duration::ZERO).await;
                return Err(error);
            }
        },
        signal = signals.next() => Some(signal),
        () = time_is_up(global) => Some(Exit::Timeout),
    };
    screen.draw(&board, engine.now());
    if let Some(exit) = stopped {
        output::warn("stopping; once more to end at once");
        tokio::select! {
            _ = engine.shutdown(Duration::ZERO) => {}
            second = signals.next() => {
                engine.abort().await;
                return Ok(second);
            }
        }
        let db_flag = global.store().map(|db| format!(" --db {db}")).unwrap_or_default();
        output::warn(&format!(
            "stopped; go on with: pensum run {} --resume{db_flag}",
            args.file.display()
        ));
        return Ok(exit);
    }
    engine.shutdown(Duration::from_secs(5)).await;
    let ids: Vec<TaskId> = run.tasks.iter().map(|(_, task)| task.id).collect();
    for ((_, task), fresh) in run.tasks.iter_mut().zip(records(engine, &ids).await?) {
        *task = fresh;
    }
    conclude(global, db, &run)
}

async fn time_is_up(global: &Global) {
    match global.timeout {
        Some(timeout) => tokio::time::sleep(timeout.0).await,
        None => std::future::pending().await,
    }
}

/// Returns when every task has ended.
async fn watch(
    engine: &Engine,
    board: &mut Board,
    screen: &mut Screen,
    mut events: broadcast::Receiver<EngineEvent>,
) -> anyhow::Result<()> {
    let mut frames = tokio::time::interval(FRAME);
    let mut next_look = engine.now().plus(LOOK);
    while !board.is_over() {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => take_in(&event, engine, board, screen).await?,
                Err(RecvError::Lagged(_)) => next_look = Time::EPOCH,
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = frames.tick() => {
                let now = engine.now();
                if now >= next_look {
                    // Events say more than the store does, so they go first.
                    while let Ok(event) = events.try_recv() {
                        take_in(&event, engine, board, screen).await?;
                    }
                    let unfinished = board.unfinished();
                    next_look = now.plus(if unfinished.len() > MANY { LOOK_MANY } else { LOOK });
                    for task in records(engine, &unfinished).await? {
                        if let Some(change) = board.refresh(&task, now) {
                            screen.tell(&change, now);
                        }
                    }
                }
                screen.draw(board, now);
            }
        }
    }
    Ok(())
}

/// Tells what happened, after what must have happened before it.
async fn take_in(event: &EngineEvent, engine: &Engine, board: &mut Board, screen: &mut Screen) -> anyhow::Result<()> {
    let overtaken = board.overtaken_by(event);
    let before = records(engine, &overtaken).await?;
    let now = engine.now();
    let changes = before
        .iter()
        .filter_map(|task| board.refresh(task, now))
        .collect::<Vec<_>>();
    for change in changes.into_iter().chain(board.apply(event)) {
        screen.tell(&change, now);
    }
    Ok(())
}

/// Shows the end of a run; the exit code that it deserves, whether anyone still reads or not.
fn conclude(global: &Global, db: &str, run: &Run) -> anyhow::Result<Exit> {
    match show_end(global, db, run) {
        Err(error) if error.downcast_ref::<Failure>() != Some(&Failure::silent(Exit::Ok)) => return Err(error),
        _ => {}
    }
    Ok(if run.is_completed() { Exit::Ok } else { Exit::Failed })
}

fn show_end(global: &Global, db: &str, run: &Run) -> anyhow::Result<()> {
    let now = now();
    match global.output {
        Format::Table | Format::Wide => output::print(&format!("\n{}", table(run, db, now))),
        Format::Name => run
            .tasks
            .iter()
            .try_for_each(|(_, task)| output::println(&task.id.to_string())),
        Format::Jsonl => {
            let lines = Summary::of(run, now).tasks;
            lines
                .iter()
                .try_for_each(|line| output::println(&serde_json::to_string(line)?))
        }
        format => output::item(format, &serde_json::to_string(&Summary::of(run, now))?, |_| {
            String::new()
        }),
    }
}

/// Where a run is shown.
enum Screen {
    /// A terminal, on which the last lines are drawn again.
    Tree { term: console::Term, drawn: usize },
    /// A line for each change: on standard output, or on standard error where standard output is for data.
    Lines { data: bool },
}

impl Screen {
    fn new(format: Format) -> Screen {
        let term = console::Term::stdout();
        if format.is_for_people() && term.is_term() && !console::is_dumb() {
            Screen::Tree { term, drawn: 0 }
        } else {
            Screen::Lines {
                data: !format.is_for_people(),
            }
        }
    }

    /// Tells a change, as long as someone reads: a run goes on without its audience.
    fn tell(&self, change: &Change, now: Time) {
        match self {
            Screen::Tree { .. } => {}
            Screen::Lines { data: true } => output::warn(&change.describe(now)),
            Screen::Lines { data: false } => {
                let _ = output::println(&change.describe(now));
            }
        }
    }

    /// Draws the tree over the one before.
    fn draw(&mut self, board: &Board, now: Time) {
        let Screen::Tree { term, drawn } = self else { return };
        let (height, width) = term.size();
        let lines = board.frame(now, usize::from(width), usize::from(height));
        let mut text = if *drawn > 0 {
            format!("\x1b[{drawn}A")
        } else {
            String::new()
        };
        for line in &lines {
            text.push_str(&format!("\x1b[2K{line}\n"));
        }
        text.push_str("\x1b[J");
        *drawn = lines.len();
        let _ = term.write_str(&text).and_then(|()| term.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_its_files_beside_its_store() {
        let directory = run_directory("sqlite:/data/a.db", "r1").unwrap();
        assert_eq!(directory, Path::new("/data/pensum-runs/r1"));
        assert!(run_directory("sqlite:a.db", "r1").unwrap().is_absolute());
        assert!(
            run_directory("sqlite::memory:", "r1")
                .unwrap()
                .starts_with(std::env::temp_dir())
        );
    }

    #[test]
    fn a_variable_is_a_name_and_a_value() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("a").is_err() && pair("=b").is_err());
    }
}
