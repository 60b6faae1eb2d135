//! What is peculiar to a store in a file: crashes, locks, damage, full disks, restarts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pensum_core::store::{Beat, Call, Checkpoint, ClaimRequest, Claimed, Command, Finish, IdempotencyKey, Store};
use pensum_core::task::{OnConflict, Unique};
use pensum_core::{
    ErrorInfo, Json, Name, NewTask, NodeId, Outcome, Page, Spec, State, Status, StoreError, TaskFilter, TaskId, Time,
};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

pub(crate) fn t(seconds: u64) -> Time {
    Time::parse("2026-03-01T12:00:00Z")
        .unwrap()
        .plus(Duration::from_secs(seconds))
}

pub(crate) fn call(now: Time) -> Call {
    Call::new("tester", now)
}

pub(crate) fn noop() -> NewTask {
    NewTask::new(Spec::new("noop", Json::null()))
}

pub(crate) fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions::new(path)).unwrap()
}

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    fn open(&self) -> SqliteStore {
        open(&self.path())
    }

    /// The files as a crash at this moment would leave them.
    fn crash_image(&self) -> Home {
        let image = Home::new();
        for suffix in ["", "-wal"] {
            let from = format!("{}{suffix}", self.path().display());
            if Path::new(&from).exists() {
                std::fs::copy(from, format!("{}{suffix}", image.path().display())).unwrap();
            }
        }
        image
    }
}

async fn add(store: &SqliteStore, count: usize, now: Time) -> Vec<TaskId> {
    let made = store
        .enqueue(&call(now), (0..count).map(|_| noop()).collect())
        .await
        .unwrap();
    made.into_iter().map(|m| m.id).collect()
}

fn request(node: u64, slots: usize) -> ClaimRequest {
    ClaimRequest::new(NodeId(node), format!("node {node}"), slots, Duration::from_secs(30))
}

async fn claim(store: &SqliteStore, node: u64, slots: usize, now: Time) -> Vec<Claimed> {
    store.claim(request(node, slots), now).await.unwrap()
}

async fn done(store: &SqliteStore, claimed: &Claimed, now: Time) {
    let finish = Finish::new(claimed.lease, Outcome::Done(Json::null()));
    store.finish(vec![finish], now).await.unwrap().remove(0).unwrap();
}

/// Returns once what the store does without being waited for (the manifest of the last claims) is on its way.
async fn settle(store: &SqliteStore, now: Time) {
    store.reap(now, 0).await.unwrap();
}

pub(crate) async fn sound(store: &SqliteStore) {
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

pub(crate) fn ids(claimed: &[Claimed]) -> Vec<TaskId> {
    claimed.iter().map(|c| c.lease.task).collect()
}

#[tokio::test]
async fn an_acknowledged_task_survives_a_crash_and_a_clean_end() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 3, t(0)).await;
    let claimed = claim(&store, 1, 1, t(0)).await;
    done(&store, &claimed[0], t(1)).await;
    let image = home.crash_image();
    store.close().await.unwrap();
    for store in [home.open(), image.open()] {
        let record = store.task("default", tasks[0]).await.unwrap().unwrap();
        assert_eq!(record.lifecycle.state, State::Completed);
        assert_eq!(ids(&claim(&store, 1, 9, t(100)).await), tasks[1..]);
        assert_eq!(store.counts("default", t(100)).await.unwrap().total().running, 2);
        sound(&store).await;
    }
}

#[tokio::test]
async fn tasks_that_had_just_started_when_their_node_died_run_alone() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 3, t(0)).await;
    assert_eq!(claim(&store, 1, 2, t(0)).await.len(), 2);
    settle(&store, t(1)).await;
    let image = home.crash_image();
    let store = image.open();

    let first = claim(&store, 2, 9, t(10)).await;
    assert_eq!(ids(&first), tasks[..1]);
    assert_eq!((first[0].lifecycle.attempt, first[0].lifecycle.suspect), (2, true));
    assert!(claim(&store, 2, 9, t(20)).await.is_empty());
    let executions = store.executions("default", tasks[0]).await.unwrap();
    assert_eq!(executions[0].error.as_ref().unwrap().kind, "crashed_node");
    assert_eq!(executions[0].executor_id, "node 1");
    sound(&store).await;
    done(&store, &first[0], t(21)).await;

    let second = claim(&store, 2, 9, t(22)).await;
    assert_eq!(ids(&second), tasks[1..2]);
    // A minute later the suspect has survived its start.
    assert_eq!(ids(&claim(&store, 2, 9, t(83)).await), tasks[2..]);
}

#[tokio::test]
async fn a_busy_node_takes_nothing_new_until_it_can_take_a_suspect() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 2, t(0)).await;
    assert_eq!(claim(&store, 1, 1, t(0)).await.len(), 1);
    settle(&store, t(1)).await;
    let image = home.crash_image();
    let store = image.open();
    let mut busy = noop();
    busy.spec.queue = "busy".into();
    store.enqueue(&call(t(2)), vec![busy.clone(), busy]).await.unwrap();
    let only_busy = ClaimRequest {
        queues: Some(["busy".into()].into()),
        ..request(2, 1)
    };
    assert_eq!(store.claim(only_busy, t(3)).await.unwrap().len(), 1);
    assert!(claim(&store, 2, 9, t(4)).await.is_empty());
    // What has run for a minute would not be blamed, so it need not end first.
    let alone = claim(&store, 2, 9, t(64)).await;
    assert_eq!(ids(&alone), tasks[..1]);
    done(&store, &alone[0], t(65)).await;
    assert_eq!(claim(&store, 2, 9, t(66)).await.len(), 2);
}

#[tokio::test]
async fn who_had_run_long_or_checkpointed_is_not_suspected() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 3, t(0)).await;
    let long = claim(&store, 1, 1, t(0)).await;
    let young = claim(&store, 1, 2, t(50)).await;
    store
        .checkpoint(
            Checkpoint {
                state: Some(Json::null()),
                ..Checkpoint::new(young[0].lease)
            },
            t(51),
        )
        .await
        .unwrap()
        .unwrap();
    let beats = vec![Beat {
        lease: long[0].lease,
        progress: None,
        logs: vec![],
    }];
    store.renew(beats, Duration::from_secs(30), t(70)).await.unwrap();
    settle(&store, t(70)).await;
    let store = home.crash_image();
    let store = store.open();
    settle(&store, t(100)).await;
    let mut suspects = Vec::new();
    for id in &tasks {
        suspects.push(store.task("default", *id).await.unwrap().unwrap().lifecycle.suspect);
    }
    assert_eq!(suspects, [false, false, true]);
}

#[tokio::test]
async fn three_crashes_alone_end_in_the_dead_letter_queue() {
    let mut home = Home::new();
    let store = home.open();
    let id = add(&store, 1, t(0)).await[0];
    let mut now = 0;
    claim(&store, 1, 1, t(now)).await;
    settle(&store, t(now)).await;
    let mut image = home.crash_image();
    drop(store);
    for crash in 0..3 {
        home = image;
        let store = home.open();
        now += 10;
        let claimed = claim(&store, 1, 1, t(now)).await;
        assert_eq!(claimed.len(), 1, "crash {crash}");
        // Careful after an unclean end: the answer came after its manifest.
        image = home.crash_image();
    }
    let store = image.open();
    now += 10;
    assert!(claim(&store, 1, 1, t(now)).await.is_empty());
    let record = store.task("default", id).await.unwrap().unwrap();
    assert_eq!(record.lifecycle.state, State::Failed);
    assert!(record.lifecycle.dead_lettered_at.is_some());
    assert_eq!(record.error.unwrap().kind, "crashed_node");
    assert_eq!(store.counts("default", t(now)).await.unwrap().dead_letters, 1);
    sound(&store).await;
}

#[tokio::test]
async fn a_cancel_asked_of_a_running_task_is_carried_out_after_a_crash() {
    let home = Home::new();
    let store = home.open();
    let id = add(&store, 1, t(0)).await[0];
    claim(&store, 1, 1, t(0)).await;
    let cancel = Command::Cancel {
        reason: Some("enough".to_owned()),
    };
    store
        .command(&call(t(1)), vec![id], cancel)
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let image = home.crash_image();
    let store = image.open();
    settle(&store, t(10)).await;
    let record = store.task("default", id).await.unwrap().unwrap();
    assert_eq!(record.lifecycle.state, State::Cancelled);
    assert_eq!(record.error.unwrap().message, "enough");
    sound(&store).await;
}

#[tokio::test]
async fn timers_keys_and_idempotency_survive_a_restart() {
    let home = Home::new();
    let store = home.open();
    let mut later = noop();
    later.run_at = Some(t(60));
    let mut expiring = noop();
    expiring.spec.details_mut().expires_at = Some(t(30));
    expiring.run_at = Some(t(500));
    let mut keyed = [noop(), noop()];
    for task in &mut keyed {
        task.spec.key = Some(Name::from("k"));
    }
    let [first, second] = keyed;
    let mut unique = noop();
    unique.unique = Some(Box::new(Unique {
        key: Name::from("u"),
        ttl: None,
        on_conflict: OnConflict::Reject,
    }));
    let key = IdempotencyKey {
        key: "i".to_owned(),
        digest: [7; 32],
    };
    let once = Call {
        idempotency: Some(key),
        ..call(t(0))
    };
    let batch = vec![later, expiring, first, second, unique.clone()];
    let made = store.enqueue(&once, batch.clone()).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(
        store.task("default", made[0].id).await,
        Err(StoreError::Closed)
    ));

    let store = home.open();
    let again = store.enqueue(&once, batch).await.unwrap();
    assert_eq!(
        again.iter().map(|m| m.id).collect::<Vec<_>>(),
        made.iter().map(|m| m.id).collect::<Vec<_>>()
    );
    assert!(again.iter().all(|m| !m.created));
    let refused = store.enqueue(&call(t(1)), vec![unique]).await.unwrap_err();
    assert!(refused.to_string().contains("is held by task"), "{refused}");
    assert_eq!(ids(&claim(&store, 1, 9, t(2)).await), [made[2].id, made[4].id]);
    assert_eq!(store.reap(t(31), 10).await.unwrap().overdue, 1);
    let counts = store.counts("default", t(31)).await.unwrap().total();
    assert_eq!((counts.pending, counts.cancelled), (1, 1));
    // The leases of the two have run out by now.
    let waiting = claim(&store, 1, 9, t(60)).await;
    assert_eq!(ids(&waiting), [made[0].id]);
    sound(&store).await;
}

fn refused(path: &Path) -> StoreError {
    match SqliteStore::open(SqliteOptions::new(path)) {
        Ok(_) => panic!("{} should be refused", path.display()),
        Err(error) => error,
    }
}

#[track_caller]
fn check_refused(home: &Home, expected: &str) {
    let before = std::fs::read(home.path()).unwrap();
    let error = refused(&home.path()).to_string();
    assert!(error.contains(expected), "{error}");
    assert_eq!(std::fs::read(home.path()).unwrap(), before, "the file was changed");
    for suffix in ["-wal", "-shm"] {
        assert!(
            !Path::new(&format!("{}{suffix}", home.path().display())).exists(),
            "{suffix} was left behind"
        );
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let home = Home::new();
    std::fs::write(home.path(), "Dear diary, this is not a database.\n".repeat(50)).unwrap();
    check_refused(&home, "is not a SQLite database");
}

#[test]
fn a_database_of_another_application_is_refused_and_left_alone() {
    let home = Home::new();
    let db = rusqlite::Connection::open(home.path()).unwrap();
    db.execute_batch("CREATE TABLE notes(text TEXT); INSERT INTO notes VALUES ('mine');")
        .unwrap();
    drop(db);
    check_refused(&home, "another application");
}

#[tokio::test]
async fn a_newer_store_is_refused_and_left_alone() {
    let home = Home::new();
    home.open().close().await.unwrap();
    let db = rusqlite::Connection::open(home.path()).unwrap();
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    db.execute_batch("PRAGMA user_version = 99").unwrap();
    drop(db);
    assert_eq!(refused(&home.path()), StoreError::Newer { found: 99, known: 4 });
    check_refused(&home, "use a newer pensum");
}

#[tokio::test]
async fn a_file_that_was_cut_short_is_refused_and_left_alone() {
    let home = Home::new();
    let store = home.open();
    add(&store, 1000, t(0)).await;
    store.close().await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(home.path()).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    check_refused(&home, "is cut short");
}

#[tokio::test]
async fn a_damaged_page_is_an_error_and_never_a_panic() {
    let home = Home::new();
    let store = home.open();
    add(&store, 5000, t(0)).await;
    store.close().await.unwrap();
    let mut bytes = std::fs::read(home.path()).unwrap();
    for page in bytes.chunks_mut(4096).skip(30) {
        page[..64].fill(0xAB);
    }
    std::fs::write(home.path(), bytes).unwrap();
    let store = home.open();
    let error = store.enqueue(&call(t(1)), vec![noop()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

#[test]
fn a_path_that_cannot_be_is_explained() {
    let home = Home::new();
    let missing = home.directory.path().join("no/such/directory/store.db");
    let error = refused(&missing).to_string();
    assert!(error.contains("directory"), "{error}");
    assert!(refused(home.directory.path()).to_string().contains("is a directory"));
    let options = SqliteOptions {
        create: false,
        ..SqliteOptions::new(home.path())
    };
    let error = SqliteStore::open(options).err().unwrap().to_string();
    assert!(error.contains("there is no store at"), "{error}");
    assert!(!home.path().exists());
}

#[test]
fn a_file_that_may_not_be_written_is_explained() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    drop(home.open());
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o444)).unwrap();
    // Whoever may write everything all the same cannot be shown this.
    if std::fs::OpenOptions::new().write(true).open(home.path()).is_ok() {
        return;
    }
    assert!(refused(&home.path()).to_string().contains("writable"));
}

#[tokio::test]
async fn a_second_owner_is_told_who_the_first_is() {
    let home = Home::new();
    let store = SqliteStore::open(SqliteOptions {
        owner: "process 7".to_owned(),
        ..SqliteOptions::new(home.path())
    })
    .unwrap();
    let path = home.path().display().to_string();
    assert_eq!(
        refused(&home.path()),
        StoreError::Locked {
            path: path.clone(),
            owner: "process 7".to_owned()
        }
    );
    store.set_owner("http://127.0.0.1:8080");
    assert_eq!(
        refused(&home.path()),
        StoreError::Locked {
            path,
            owner: "http://127.0.0.1:8080".to_owned()
        }
    );
    store.close().await.unwrap();
    home.open().close().await.unwrap();
    // Dropped without being closed, it lets go all the same.
    drop(home.open());
    drop(home.open());
}

#[tokio::test]
async fn a_full_disk_refuses_the_group_and_keeps_what_was_there() {
    let home = Home::new();
    let store = home.open();
    add(&store, 10, t(0)).await;
    let claimed = claim(&store, 1, 5, t(0)).await;
    store.set_size_limit(0).await.unwrap();
    let mut big = noop();
    big.spec.parameters = Json::from(serde_json::json!("x".repeat(500_000)));
    let error = store.enqueue(&call(t(1)), vec![big.clone()]).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable(why) if why.contains("disk full")),
        "{error}"
    );
    assert_eq!(store.counts("default", t(1)).await.unwrap().total().running, 5);
    sound(&store).await;

    let large = Finish::new(
        claimed[0].lease,
        Outcome::Done(Json::from(serde_json::json!("y".repeat(500_000)))),
    );
    let error = store.finish(vec![large.clone()], t(2)).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable(why) if why.contains("disk full")),
        "{error}"
    );
    let record = store.task("default", claimed[0].lease.task).await.unwrap().unwrap();
    assert_eq!(record.lifecycle.state, State::Running);

    store.set_size_limit(1 << 40).await.unwrap();
    store.finish(vec![large], t(3)).await.unwrap().remove(0).unwrap();
    store.enqueue(&call(t(3)), vec![big]).await.unwrap();
    assert_eq!(claim(&store, 1, 99, t(4)).await.len(), 6);
    sound(&store).await;
}

#[tokio::test]
async fn claims_that_nobody_receives_go_back() {
    let home = Home::new();
    let store = home.open();
    let patient = ClaimRequest {
        wait: Duration::from_secs(600),
        ..request(1, 5)
    };
    {
        // Parked, and then forgotten.
        let waiting = store.claim(patient.clone(), t(0));
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await.is_none());
    }
    let tasks = {
        // Answered, and never asked for the answer.
        let waiting = store.claim(patient, t(0));
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        let tasks = add(&store, 2, t(0)).await;
        settle(&store, t(0)).await;
        assert_eq!(store.counts("default", t(0)).await.unwrap().total().running, 2);
        tasks
    };
    // The claims come back by a message of their own, which this one follows.
    settle(&store, t(0)).await;
    let claimed = claim(&store, 2, 9, t(1)).await;
    assert_eq!(ids(&claimed), tasks);
    assert_eq!(claimed[0].lifecycle.attempt, 1);
    sound(&store).await;
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_parked_claim_is_served_by_an_enqueue_a_due_time_or_the_end_of_its_wait() {
    let home = Home::new();
    let store = std::sync::Arc::new(home.open());
    let park = |wait| {
        let store = store.clone();
        tokio::spawn(async move { store.claim(ClaimRequest { wait, ..request(1, 1) }, t(0)).await.unwrap() })
    };
    let waiting = park(Duration::from_secs(60));
    tokio::task::yield_now().await;
    let tasks = add(&store, 1, t(0)).await;
    assert_eq!(ids(&waiting.await.unwrap()), tasks);

    let waiting = park(Duration::from_secs(60));
    tokio::task::yield_now().await;
    let mut soon = noop();
    soon.run_at = Some(t(0).plus(Duration::from_millis(80)));
    let made = store.enqueue(&call(t(0)), vec![soon]).await.unwrap();
    assert_eq!(ids(&waiting.await.unwrap()), [made[0].id]);

    assert!(park(Duration::from_millis(20)).await.unwrap().is_empty());
    sound(&store).await;
}

#[tokio::test]
async fn a_store_that_is_only_read_shows_all_and_changes_nothing() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 3, t(0)).await;
    let reader = SqliteStore::open(SqliteOptions {
        read_only: true,
        ..SqliteOptions::new(home.path())
    })
    .unwrap();
    assert_eq!(reader.task("default", tasks[1]).await.unwrap().unwrap().id, tasks[1]);
    assert_eq!(reader.counts("default", t(0)).await.unwrap().total().ready, 3);
    assert_eq!(
        reader
            .tasks("default", TaskFilter::default(), Page::default(), t(0))
            .await
            .unwrap()
            .items
            .len(),
        3
    );
    sound(&reader).await;
    let error = reader.enqueue(&call(t(0)), vec![noop()]).await.unwrap_err();
    assert!(error.to_string().contains("read only"), "{error}");
}

#[tokio::test]
async fn a_backup_is_a_store_of_its_own_and_overwrites_nothing() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 500, t(0)).await;
    let copy = home.directory.path().join("copy.db");
    store.backup(&copy).await.unwrap();
    let error = store.backup(&copy).await.unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
    add(&store, 1, t(1)).await;
    let other = open(&copy);
    assert_eq!(ids(&claim(&other, 1, 999, t(2)).await), tasks);
    sound(&other).await;
}

#[tokio::test]
async fn verify_names_what_was_tampered_with() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 3, t(0)).await;
    let claimed = claim(&store, 1, 1, t(0)).await;
    done(&store, &claimed[0], t(1)).await;
    store.close().await.unwrap();
    let db = rusqlite::Connection::open(home.path()).unwrap();
    db.execute_batch(
        "DELETE FROM outcome; UPDATE task SET class = 5 WHERE row = 3; UPDATE live SET state = 1 WHERE row = 2",
    )
    .unwrap();
    drop(db);
    let store = home.open();
    let violations = store.verify().await.unwrap().violations.join("\n");
    for part in [
        "task 1 is neither",
        "task 3 is in one class",
        "counts 1 completed tasks and has 0",
    ] {
        assert!(violations.contains(part), "{part}: {violations}");
    }
    assert_eq!(tasks.len(), 3);
}

#[tokio::test]
async fn a_list_by_a_rare_filter_has_bounded_pages_and_comes_to_its_end() {
    let home = Home::new();
    let store = home.open();
    let mut rare = noop();
    rare.spec.queue = Name::from("rare");
    let wanted = store.enqueue(&call(t(0)), vec![rare]).await.unwrap()[0].id;
    for _ in 0..5 {
        add(&store, 10_000, t(0)).await;
    }
    let filter = TaskFilter {
        queue: Some(Name::from("rare")),
        ..TaskFilter::default()
    };
    let (mut found, mut pages, mut page) = (Vec::new(), 0, Page::default());
    loop {
        let got = store
            .tasks("default", filter.clone(), page.clone(), t(1))
            .await
            .unwrap();
        found.extend(got.items.into_iter().map(|t| t.id));
        pages += 1;
        match got.next {
            Some(next) => page.before_row = Some(next),
            None => break,
        }
    }
    assert_eq!(found, [wanted]);
    assert!((2..10).contains(&pages), "{pages}");
}

#[tokio::test]
async fn running_tasks_show_as_running_though_nothing_was_written() {
    let home = Home::new();
    let store = home.open();
    let tasks = add(&store, 2, t(0)).await;
    let claimed = claim(&store, 1, 1, t(5)).await;
    let record = store.task("default", tasks[0]).await.unwrap().unwrap();
    assert_eq!(
        (record.lifecycle.state, record.lifecycle.started_at),
        (State::Running, Some(t(5)))
    );
    let running = TaskFilter {
        status: vec![Status::Running],
        ..TaskFilter::default()
    };
    let listed = store.tasks("default", running, Page::default(), t(5)).await.unwrap();
    assert_eq!(listed.items.iter().map(|t| t.id).collect::<Vec<_>>(), tasks[..1]);
    let executions = store.executions("default", tasks[0]).await.unwrap();
    assert_eq!(
        (executions[0].attempt, executions[0].executor_id.as_str()),
        (1, "node 1")
    );
    let retry = Outcome::Retry {
        error: ErrorInfo::new("boom", "it broke"),
        after: Some(Duration::from_secs(9)),
    };
    store
        .finish(vec![Finish::new(claimed[0].lease, retry)], t(6))
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(
        Status::of(&store.task("default", tasks[0]).await.unwrap().unwrap().lifecycle, t(6)),
        Status::Retrying
    );
}
