//! Measures the embedded store in process: `cargo run --release -p pensum-store --example speed [DIRECTORY] [COUNT]`.
//!
//! Every figure is with `synchronous=FULL`, on the disk of DIRECTORY (the present one by default).

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement prints, and reads the clock"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pensum_core::store::{Call, ClaimRequest, Claimed, Finish, Store};
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, Page, Spec, TaskFilter, Time};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

fn now() -> Time {
    Time::from_micros(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_micros() as i64,
    )
}

fn task(n: usize) -> NewTask {
    let text = format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat(180));
    NewTask::new(Spec::new("noop", Json::parse(text).unwrap_or_default()))
}

fn call() -> Call {
    Call::new("speed", now())
}

fn request(slots: usize, wait: Duration) -> ClaimRequest {
    ClaimRequest {
        node: NodeId(1),
        executor: Name::from("speed"),
        slots,
        capabilities: Some(Arc::from([Name::from("noop")])),
        queues: None,
        resources: None,
        agent: None,
        lease: Duration::from_secs(30),
        wait,
    }
}

fn rate(what: &str, count: usize, took: Duration) {
    println!(
        "{what:<44} {:>10.0} /s   ({count} in {:.2} s)",
        count as f64 / took.as_secs_f64(),
        took.as_secs_f64()
    );
}

fn percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    println!(
        "{what:<44} p50 {:.3} ms   p99 {:.3} ms   max {:.3} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kb| kb.parse::<f64>().ok())
        .unwrap_or_default()
        / 1024.0
}

async fn enqueue_bulk(store: &Arc<SqliteStore>, count: usize, batch: usize, flight: usize) -> Duration {
    // The tasks are made beforehand: only the store is measured.
    let mut batches: Vec<Vec<NewTask>> = (0..count / batch).map(|_| (0..batch).map(task).collect()).collect();
    let started = Instant::now();
    let mut running = Vec::new();
    while let Some(tasks) = batches.pop() {
        let store = store.clone();
        running.push(tokio::spawn(async move {
            store.enqueue(&call(), tasks).await.expect("enqueue")
        }));
        if running.len() >= flight {
            running.remove(0).await.expect("join");
        }
    }
    for handle in running {
        handle.await.expect("join");
    }
    started.elapsed()
}

async fn enqueue_single(store: &Arc<SqliteStore>, count: usize, flight: usize) -> Duration {
    let left = Arc::new(AtomicUsize::new(count));
    let started = Instant::now();
    let workers: Vec<_> = (0..flight)
        .map(|_| {
            let (store, left) = (store.clone(), left.clone());
            tokio::spawn(async move {
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
                {
                    store.enqueue(&call(), vec![task(1)]).await.expect("enqueue");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("join");
    }
    started.elapsed()
}

/// Claims and finishes in batches, the finishes of one overlapping the claim of the next.
async fn drain(store: &Arc<SqliteStore>, count: usize, batch: usize, wait: Duration) -> Duration {
    let started = Instant::now();
    let mut done = 0;
    let mut finishing: Vec<tokio::task::JoinHandle<usize>> = Vec::new();
    let asked = request(batch, wait);
    while done < count {
        let claimed = store.claim(asked.clone(), now()).await.expect("claim");
        if claimed.is_empty() {
            let Some(handle) = finishing.pop() else { continue };
            done += handle.await.expect("join");
            continue;
        }
        let store = store.clone();
        finishing.push(tokio::spawn(async move { finish(&store, claimed).await }));
        while finishing.len() > 3 {
            done += finishing.remove(0).await.expect("join");
        }
    }
    started.elapsed()
}

async fn finish(store: &Arc<SqliteStore>, claimed: Vec<Claimed>) -> usize {
    let finishes: Vec<Finish> = claimed
        .iter()
        .map(|c| Finish::new(c.lease, Outcome::Done(Json::null())))
        .collect();
    let results = store.finish(finishes, now()).await.expect("finish");
    results.into_iter().filter(|r| r.is_ok()).count()
}

async fn claim_times(store: &Arc<SqliteStore>, rounds: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(rounds);
    let asked = request(1, Duration::ZERO);
    for _ in 0..rounds {
        let started = Instant::now();
        let claimed = store.claim(asked.clone(), now()).await.expect("claim");
        times.push(started.elapsed());
        finish(store, claimed).await;
    }
    times
}

async fn idle_latency(store: &Arc<SqliteStore>, rounds: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let waiting = {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .claim(request(1, Duration::from_secs(5)), now())
                    .await
                    .expect("claim")
            })
        };
        tokio::time::sleep(Duration::from_millis(3)).await;
        let started = Instant::now();
        let call = call();
        let (enqueued, claimed) = tokio::join!(store.enqueue(&call, vec![task(1)]), waiting);
        times.push(started.elapsed());
        enqueued.expect("enqueue");
        finish(store, claimed.expect("join")).await;
    }
    times
}

async fn list_times(store: &Arc<SqliteStore>, filter: TaskFilter, rounds: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        store
            .tasks("default", filter.clone(), Page::default(), now())
            .await
            .expect("tasks");
        times.push(started.elapsed());
    }
    times
}

fn fsync_time(directory: &std::path::Path) -> Duration {
    use std::io::Write;
    let path = directory.join("fsync");
    let mut file = std::fs::File::create(&path).expect("file");
    let started = Instant::now();
    for _ in 0..100 {
        file.write_all(&[0; 4096]).expect("write");
        file.sync_data().expect("fsync");
    }
    let took = started.elapsed() / 100;
    let _ = std::fs::remove_file(path);
    took
}

/// `speed open FILE`: a fresh process over an existing store, for its memory and its time to open.
async fn look_at(path: &std::path::Path) {
    println!("{:<44} {:>10.1} MB", "resident before", resident_mb());
    let started = Instant::now();
    let store = Arc::new(SqliteStore::open(SqliteOptions::new(path)).expect("open"));
    let opened = started.elapsed();
    store
        .tasks("default", TaskFilter::default(), Page::default(), now())
        .await
        .expect("tasks");
    let read = started.elapsed();
    store.counts("default", now()).await.expect("counts");
    let loaded = started.elapsed();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "open {:.1} ms, first list {:.1} ms, order loaded {:.1} ms",
        ms(opened),
        ms(read),
        ms(loaded)
    );
    println!("{:<44} {:>10.1} MB", "resident after opening", resident_mb());
    percentiles("claim of one", claim_times(&store, 2_000).await);
    rate(
        "drain, batches of 1,000",
        200_000,
        drain(&store, 200_000, 1000, Duration::ZERO).await,
    );
    println!("{:<44} {:>10.1} MB", "resident after draining some", resident_mb());
    store.close().await.expect("close");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let count: usize = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let big: usize = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let path = directory.join("speed.db");
    let clear = || {
        for suffix in ["", "-wal", "-shm", ".lock"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    };
    let look = std::env::args().nth(1).as_deref() == Some("open");
    if look {
        return look_at(&PathBuf::from(
            std::env::args().nth(2).unwrap_or_else(|| "speed.db".to_owned()),
        ))
        .await;
    }
    clear();
    let open = || Arc::new(SqliteStore::open(SqliteOptions::new(&path)).expect("open"));
    println!(
        "{:<44} {:>10.3} ms",
        "4 KiB append + fdatasync",
        fsync_time(&directory).as_secs_f64() * 1e3
    );
    let store = open();
    enqueue_bulk(&store, 20_000, 1000, 4).await;
    drain(&store, 20_000, 1000, Duration::ZERO).await;

    if std::env::var_os("SINGLE").is_some() {
        for _ in 0..3 {
            rate(
                "enqueue single, 50 in flight",
                count,
                enqueue_single(&store, count, 50).await,
            );
            rate(
                "drain, batches of 1,000",
                count,
                drain(&store, count, 1000, Duration::ZERO).await,
            );
        }
        return store.close().await.expect("close");
    }
    rate(
        "enqueue bulk, batches of 1,000",
        count,
        enqueue_bulk(&store, count, 1000, 4).await,
    );
    rate(
        "drain, batches of 1,000",
        count,
        drain(&store, count, 1000, Duration::ZERO).await,
    );
    rate(
        "enqueue single, 50 in flight",
        count,
        enqueue_single(&store, count, 50).await,
    );
    rate(
        "drain, batches of 100",
        count,
        drain(&store, count, 100, Duration::ZERO).await,
    );
    let mixed = async |single: bool| {
        let enqueuing = {
            let store = store.clone();
            tokio::spawn(async move {
                if single {
                    enqueue_single(&store, count, 50).await
                } else {
                    enqueue_bulk(&store, count, 1000, 4).await
                }
            })
        };
        let started = Instant::now();
        drain(&store, count, 1000, Duration::from_millis(50)).await;
        let took = started.elapsed();
        enqueuing.await.expect("join");
        took
    };
    rate("end to end, bulk", count, mixed(false).await);
    rate("end to end, single, 50 in flight", count, mixed(true).await);
    percentiles("idle: enqueue to claimed", idle_latency(&store, 500).await);
    enqueue_bulk(&store, 2_000, 1000, 4).await;
    percentiles("claim of one, 1,000 pending", claim_times(&store, 1_000).await);
    drain(&store, 1_000, 1000, Duration::ZERO).await;

    rate(
        "enqueue bulk up to many pending",
        big,
        enqueue_bulk(&store, big, 1000, 4).await,
    );
    percentiles("claim of one, many pending", claim_times(&store, 1_000).await);
    let status = |status| TaskFilter {
        status: vec![status],
        ..TaskFilter::default()
    };
    percentiles("list, no filter", list_times(&store, TaskFilter::default(), 100).await);
    percentiles(
        "list, status ready",
        list_times(&store, status(pensum_core::Status::Ready), 100).await,
    );
    percentiles(
        "list, status failed",
        list_times(&store, status(pensum_core::Status::Failed), 100).await,
    );
    percentiles(
        "list, status completed",
        list_times(&store, status(pensum_core::Status::Completed), 100).await,
    );
    let tagged = TaskFilter {
        tag: Some("none".to_owned()),
        ..TaskFilter::default()
    };
    percentiles("list, a tag that is not there", list_times(&store, tagged, 100).await);
    let worded = TaskFilter {
        q: Some("none".to_owned()),
        ..TaskFilter::default()
    };
    percentiles("list, text that is not there", list_times(&store, worded, 100).await);
    println!("{:<44} {:>10.1} MB", "resident with many pending", resident_mb());
    store.close().await.expect("close");
    drop(store);

    let started = Instant::now();
    let store = open();
    let opened = started.elapsed();
    store
        .tasks("default", TaskFilter::default(), Page::default(), now())
        .await
        .expect("tasks");
    let read = started.elapsed();
    store.counts("default", now()).await.expect("counts");
    println!(
        "{:<44} open {:.1} ms, first list {:.1} ms, order loaded {:.1} ms",
        "open with many pending",
        opened.as_secs_f64() * 1e3,
        read.as_secs_f64() * 1e3,
        started.elapsed().as_secs_f64() * 1e3
    );
    println!("{:<44} {:>10.1} MB", "resident after opening", resident_mb());
    rate(
        "drain from disk, batches of 1,000",
        count,
        drain(&store, count, 1000, Duration::ZERO).await,
    );
    store.close().await.expect("close");
    if std::env::var_os("KEEP").is_none() {
        clear();
    }
}
