//! What the tests share: a node that can be killed and started again, an HTTP client, the command line, and a look
//! into `/proc`.

mod cli;
mod http;
mod process;
mod server;

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use cli::{Cli, SECRET, program};
pub(crate) use http::{Answer, Http};
pub(crate) use pensum_testing::run::is_long as long;
use pensum_testing::run::seed;
pub(crate) use process::{alive, cpu_ticks, kill_marked, marked, state};
pub(crate) use server::Server;

/// Longest wait for anything that should happen soon; long, because the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, most: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + most;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {most:?} in vain for {what}");
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// Looks again and again for a while that `holds` does.
#[track_caller]
pub(crate) fn throughout(what: &str, time: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(holds(), "{what}: no longer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A small source of random numbers (xorshift64*), seeded, so that a run can be repeated.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From `PENSUM_TEST_SEED`, else from the clock; the seed is printed.
    pub(crate) fn new() -> Random {
        Random::of(seed())
    }

    pub(crate) fn of(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A task that runs a shell script; `$1` is `file`.
pub(crate) fn shell(script: &str, file: &Path) -> Value {
    json!({ "handler": "command", "parameters": { "program": "sh", "args": ["-c", script, "sh", file] } })
}

/// `base` with the fields of `more`.
pub(crate) fn with(mut base: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("not an object: {more}")
    };
    base.as_object_mut().unwrap().extend(more);
    base
}

/// The lines of a file; none when it does not exist yet.
pub(crate) fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// A script that notes its process, and goes on until a file is there. It starts no children: one that is stopped while it does
/// shows another state than a stopped process.
pub(crate) const SPIN: &str =
    r#"echo $$ > "$1.pid"; while [ ! -e "$1" ]; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; done"#;

/// A script that runs for a moment, and notes when it began and ended.
pub(crate) const NOTE_TIMES: &str = r#"b=$(date +%s%N); sleep 0.2; echo "$b $(date +%s%N)" >> "$1""#;

/// How many runs of [`NOTE_TIMES`] wrote to a file, and the most of them that went on when one of them began.
pub(crate) fn runs_at_once(file: &Path) -> (usize, usize) {
    let runs: Vec<(u64, u64)> = lines(file)
        .iter()
        .map(|line| {
            let (begin, end) = line.split_once(' ').unwrap();
            (begin.parse().unwrap(), end.parse().unwrap())
        })
        .collect();
    let at_once = |(at, _): &(u64, u64)| runs.iter().filter(|(begin, end)| begin <= at && at < end).count();
    (runs.len(), runs.iter().map(at_once).max().unwrap_or(0))
}

/// The text of a JSON string.
#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

/// The items of a JSON array.
#[track_caller]
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// Seconds from one time of a task to another.
#[track_caller]
pub(crate) fn seconds_between(from: &Value, to: &Value) -> f64 {
    let read = |value: &Value| text(value).parse::<jiff::Timestamp>().unwrap();
    (read(to).as_microsecond() - read(from).as_microsecond()) as f64 / 1e6
}

/// A time from now, in the API's form.
pub(crate) fn time_in(time: Duration) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::try_from(time).unwrap()).to_string()
}

/// Fails unless `part` is in `whole`, whatever the case.
#[track_caller]
pub(crate) fn assert_says(whole: &(impl Debug + ?Sized), part: &str) {
    let whole = format!("{whole:?}");
    assert!(
        whole.to_lowercase().contains(&part.to_lowercase()),
        "{whole} should say {part:?}"
    );
}
