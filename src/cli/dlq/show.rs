//! `pensum dlq show`: everything about one failed task on one screen.

use clap::Args;
use pensum_core::outcome::ErrorInfo;
use pensum_core::{Fingerprint, TaskId, Time};
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::exit::Exit;
use crate::cli::output::{self, Format, age, plain};
use crate::cli::task::{describe, path, printable};
use crate::cli::{Global, now};

/// How many log lines are shown when nobody says otherwise.
const LINES_DEFAULT: usize = 20;

#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// The task.
    id: TaskId,
    /// How many of its last log lines to show; 20 by default. The formats for programs have all of them.
    #[arg(long, value_name = "N")]
    lines: Option<usize>,
}

pub(super) async fn show(global: &Global, client: &Client, args: &ShowArgs) -> anyhow::Result<Exit> {
    let at = path(args.id);
    let text = client.get(&at, &[]).await?;
    let (attempts, _) = client.list(&format!("{at}/executions"), &[], None, true).await?;
    let (logs, _) = client.list(&format!("{at}/logs"), &[], None, true).await?;
    let task: Value = serde_json::from_str(&text)?;
    let fingerprint = fingerprint(&task);
    if global.output == Format::Name {
        output::println(&args.id.to_string())?;
        return Ok(Exit::Ok);
    }
    if !global.output.is_for_people() {
        let whole = format!(
            "{{\"task\":{text},\"fingerprint\":{},\"executions\":[{}],\"logs\":[{}]}}",
            serde_json::to_string(&fingerprint)?,
            attempts.join(","),
            logs.join(",")
        );
        output::item(global.output, &whole, |_| String::new())?;
        return Ok(Exit::Ok);
    }
    let now = now();
    let mut shown = describe(&task, now);
    if let Some(fingerprint) = fingerprint {
        shown.push_str(&format!("fingerprint  {fingerprint}\n"));
    }
    for attempt in &attempts {
        shown.push_str(&block(&serde_json::from_str(attempt)?, now));
    }
    shown.push_str(&tail(&logs, args.lines.unwrap_or(LINES_DEFAULT))?);
    output::print(&shown)?;
    Ok(Exit::Ok)
}

/// The fingerprint of a dead letter.
fn fingerprint(task: &Value) -> Option<Fingerprint> {
    if task["dead_lettered_at"].is_null() {
        return None;
    }
    let error: Option<ErrorInfo> = serde_json::from_value(task["error"].clone()).ok().flatten();
    Some(Fingerprint::of(task["handler"].as_str()?, error.as_ref()))
}

/// An attempt: when, how it ended, what it used, and its whole error.
fn block(attempt: &Value, now: Time) -> String {
    let usage = &attempt["resource_usage"];
    let number = |key: &str, unit: &str| usage[key].as_f64().map(|value| format!("{value:.2}{unit}"));
    let used = [
        number("wall_seconds", "s").map(|wall| format!("took {wall}")),
        number("cpu_seconds", "s").map(|cpu| format!("cpu {cpu}")),
        number("memory_mb", " MB").map(|memory| format!("memory {memory}")),
        number("read_mb", " MB").map(|read| format!("read {read}")),
        number("written_mb", " MB").map(|written| format!("wrote {written}")),
    ];
    let mut text = format!(
        "\nattempt {}  {}  {} ({} ago)  {}  on {}\n",
        attempt["attempt"],
        plain(&attempt["status"]),
        plain(&attempt["started_at"]),
        age(&attempt["started_at"], now),
        used.into_iter().flatten().collect::<Vec<_>>().join(", "),
        plain(&attempt["executor_id"]),
    );
    if let (Some(kind), Some(message)) = (attempt["error"]["type"].as_str(), attempt["error"]["message"].as_str()) {
        for (index, line) in message.lines().enumerate() {
            let kind = if index == 0 { format!("{kind}: ") } else { String::new() };
            text.push_str(&format!("  {kind}{}\n", printable(line)));
        }
    }
    text
}

/// The last lines of a log.
fn tail(logs: &[String], lines: usize) -> anyhow::Result<String> {
    if logs.is_empty() {
        return Ok(String::new());
    }
    let from = logs.len().saturating_sub(lines);
    let mut text = match from {
        0 => "\nlog\n".to_owned(),
        _ => format!("\nlog, the last {} of {} lines\n", logs.len() - from, logs.len()),
    };
    for line in &logs[from..] {
        let line: Value = serde_json::from_str(line)?;
        let message = printable(&plain(&line["message"]));
        text.push_str(&format!(
            "  #{} {:6} {message}\n",
            line["attempt"],
            plain(&line["stream"])
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_attempt_is_shown_with_all_lines_of_its_error_and_no_control_characters() {
        let attempt = json!({"attempt": 2, "status": "failed", "started_at": "1970-01-01T00:00:00Z",
            "executor_id": "node-a", "resource_usage": {"wall_seconds": 1.5, "cpu_seconds": 0.25, "memory_mb": 3.0},
            "error": {"type": "exit_code", "message": "it exited with code 3\n\u{1b}[31mred"}});
        assert_eq!(
            block(&attempt, Time::from_micros(5_000_000)),
            "\nattempt 2  failed  1970-01-01T00:00:00Z (5.0s ago)  took 1.50s, cpu 0.25s, memory 3.00 MB  on node-a\n  \
             exit_code: it exited with code 3\n  [31mred\n"
        );
    }

    #[test]
    fn a_long_log_is_shown_from_its_end() {
        let line =
            |n: u32| json!({"seq": n, "attempt": 1, "stream": "log", "message": format!("line {n}")}).to_string();
        let logs: Vec<String> = (1..=3).map(line).collect();
        assert_eq!(
            tail(&logs, 2).unwrap(),
            "\nlog, the last 2 of 3 lines\n  #1 log    line 2\n  #1 log    line 3\n"
        );
        assert!(tail(&logs, 3).unwrap().starts_with("\nlog\n  #1 log    line 1\n"));
        assert_eq!(tail(&[], 3).unwrap(), "");
    }

    #[test]
    fn only_a_dead_letter_has_a_fingerprint() {
        let mut task = json!({"handler": "fail", "error": {"type": "failed", "message": "no"},
            "dead_lettered_at": "1970-01-01T00:00:00Z"});
        let error = ErrorInfo::new("failed", "no");
        assert_eq!(fingerprint(&task), Some(Fingerprint::of("fail", Some(&error))));
        task["error"].take();
        assert_eq!(fingerprint(&task), Some(Fingerprint::of("fail", None)));
        task["dead_lettered_at"].take();
        assert_eq!(fingerprint(&task), None);
    }
}
