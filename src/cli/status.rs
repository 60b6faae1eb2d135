//! `pensum status`.

use std::time::Duration;

use pensum_core::{Status, Time};
use serde_json::Value;

use super::client::Client;
use super::exit::Exit;
use super::output::{self, plain};
use super::{Global, node, now, task};

pub(crate) async fn status(global: &Global) -> anyhow::Result<Exit> {
    let client = Client::connect(global, false).await?;
    let result = task::watched(global, || async {
        let text = client.get("/api/v1/system/status", &[]).await?;
        let queues = match global.output.is_for_people() {
            true => client.get_value("/api/v1/queues/stats", &[]).await?,
            false => Value::Null,
        };
        output::item(global.output, &text, |status| {
            describe(status, &queues, client.is_alone(), now())
        })?;
        Ok(false)
    })
    .await;
    client.close().await;
    result
}

fn describe(status: &Value, queues: &Value, alone: bool, now: Time) -> String {
    let uptime = status["uptime_seconds"].as_f64().unwrap_or_default().max(0.0);
    let answers = match alone {
        true => "none; nothing runs tasks on this store now".to_owned(),
        false => format!(
            "{}, up {}",
            plain(&status["status"]),
            output::spoken(Duration::from_secs_f64(uptime))
        ),
    };
    let mut text = output::fields(&[
        ("node", answers),
        ("version", plain(&status["version"])),
        ("tasks", plain(&status["total_tasks"])),
        ("running", plain(&status["active_tasks"])),
        ("attempts", plain(&status["total_executions"])),
        ("dead letters", plain(&queues["dead_letters"])),
    ]);
    text.push_str(&nodes(status, now));
    text.push('\n');
    let headers: Vec<&str> = std::iter::once("queue")
        .chain(Status::ALL.iter().map(|status| status.as_str()))
        .collect();
    let row = |name: &str, counts: &Value| {
        let count = |status: &Status| plain(&counts[format!("{status}_tasks")]);
        std::iter::once(name.to_owned())
            .chain(Status::ALL.iter().map(count))
            .collect::<Vec<_>>()
    };
    // Queues that only finished tasks are left of (those of earlier runs of plans, say) are counted in the total.
    let busy = |counts: &Value| {
        ["pending", "ready", "running", "retrying", "paused"]
            .iter()
            .any(|s| counts[format!("{s}_tasks")] != 0)
    };
    let queue_rows = queues["queues"].as_object().into_iter().flatten();
    let mut rows: Vec<Vec<String>> = queue_rows
        .filter(|(name, counts)| busy(counts) || *name == "default")
        .map(|(name, c)| row(name, c))
        .collect();
    rows.push(row("all", queues));
    let right: Vec<bool> = headers.iter().map(|header| *header != "queue").collect();
    text.push_str(&output::aligned(headers, &right, rows));
    text
}

/// Each node with its load; nothing where there is none.
fn nodes(status: &Value, now: Time) -> String {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if nodes.is_empty() {
        return String::new();
    }
    let row = |node: &Value| {
        let seen = node::ago(&node["seen_at"], now);
        vec![
            plain(&node["name"]),
            plain(&node["status"]),
            node::load(node),
            plain(&node["address"]),
            seen,
        ]
    };
    let headers = vec!["node", "status", "running", "address", "last seen"];
    let rows = nodes.iter().map(row).collect();
    format!(
        "\n{}",
        output::aligned(headers, &[false, false, true, false, true], rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_shows_queues_with_work_and_the_total() {
        let counts = |ready: u64, completed: u64| {
            serde_json::json!({"pending_tasks": 0, "ready_tasks": ready, "running_tasks": 0, "retrying_tasks": 0,
                "paused_tasks": 0, "completed_tasks": completed, "failed_tasks": 0, "cancelled_tasks": 0})
        };
        let mut queues = counts(2, 7);
        queues["dead_letters"] = 1.into();
        queues["queues"] = serde_json::json!({"default": counts(0, 3), "mail": counts(2, 0), "old": counts(0, 4)});
        let mut status = serde_json::json!({"status": "ok", "version": "1", "uptime_seconds": 61.0, "total_tasks": 9});
        let text = describe(&status, &queues, false, Time::EPOCH);
        assert!(
            text.contains("ok, up 1m 1s") && text.contains("dead letters  1"),
            "{text}"
        );
        assert!(
            text.contains("mail") && !text.contains("old") && text.contains("all"),
            "{text}"
        );
        assert!(!text.contains("LAST SEEN"), "{text}");
        status["nodes"] = serde_json::json!([{"name": "one", "status": "lost", "running": 3, "slots": 64,
            "address": null, "seen_at": "1970-01-01T00:00:00Z"}]);
        let text = describe(&status, &queues, false, Time::from_micros(20_000_000));
        let line = text.lines().find(|line| line.starts_with("one")).unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["one", "lost", "3/64", "20s", "ago"], "{text}");
    }
}
