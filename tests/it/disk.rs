//! A full disk: refusals instead of losses, and no need of a restart when there is room again.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{SOON, Server, eventually, shell, text, with};

/// A small file system in memory; gone with the value.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={size}");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "pensum-it"])
            .arg(at)
            .output();
        output
            .is_ok_and(|output| output.status.success())
            .then(|| SmallDisk { at: at.to_owned() })
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.at)
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn directory() -> TempDir {
    TempDir::with_prefix("pensum-it-").unwrap()
}

#[test]
fn a_full_disk_refuses_new_tasks_loses_none_and_works_again_with_room() {
    let place = directory();
    let at = place.path().join("disk");
    let Some(disk) = SmallDisk::mount(&at, "2m") else {
        println!("skipped: mounting a file system is not permitted here");
        return;
    };
    let mut server = Server::start_on(directory(), at.join("x.db"), &[]);
    let gate = server.file("gate");
    let running = server.create(&shell(r#"until [ -e "$1" ]; do sleep 0.05; done"#, &gate));
    server.wait(&running, "running");
    let task =
        json!({ "handler": "noop", "delay": "1h", "tags": ["kept"], "parameters": { "filling": "x".repeat(20_000) } });

    let mut acknowledged = Vec::new();
    let refusal = loop {
        let answer = server.http.post("/api/v1/tasks", &task);
        if answer.status != 201 {
            break answer;
        }
        acknowledged.push(text(&answer.body["id"]));
        assert!(acknowledged.len() < 1_000, "2 MB hold more than 20 MB");
    };
    assert!(refusal.header("retry-after").is_some());
    let refusal = refusal.expect(503);
    println!("{} tasks acknowledged, then: {}", acknowledged.len(), refusal["detail"]);
    assert!(acknowledged.len() > 10);
    let small = json!({ "handler": "noop", "delay": "1h", "tags": ["kept"] });
    for _ in 0..20 {
        let answer = server.http.post("/api/v1/tasks", &small);
        match answer.status {
            201 => acknowledged.push(text(&answer.body["id"])),
            _ => drop(answer.expect(503)),
        }
    }
    server.http.get("/healthz").expect(200);
    let kept = || server.http.all("/api/v1/tasks?tag=kept").len();
    assert_eq!(
        kept(),
        acknowledged.len(),
        "reading goes on, and nothing is there that was refused"
    );
    // What ends meanwhile is not lost either.
    std::fs::write(&gate, "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));

    disk.resize("64m");
    let id = eventually("a task to be taken again", SOON, || {
        let answer = server
            .http
            .post("/api/v1/tasks", &with(task.clone(), json!({ "delay": 0 })));
        (answer.status == 201).then(|| text(&answer.body["id"]))
    });
    acknowledged.push(id.clone());
    server.wait_both(&id, "completed");
    server.wait_both(&running, "completed");
    let ends = server
        .events(&running)
        .iter()
        .filter(|kind| *kind == "completed")
        .count();
    assert_eq!(ends, 1);
    assert_eq!(kept(), acknowledged.len());
    assert!(
        server.log_lines() < 200,
        "a full disk fills the log too: {} lines",
        server.log_lines()
    );
    server.stop();
    server.verify();
    server.restart();
    for id in &acknowledged {
        server.task(id);
    }
    server.finish();
}

#[test]
fn a_node_killed_on_a_full_disk_starts_again_with_room() {
    let place = directory();
    let at = place.path().join("disk");
    let Some(disk) = SmallDisk::mount(&at, "2m") else {
        println!("skipped: mounting a file system is not permitted here");
        return;
    };
    let mut server = Server::start_on(directory(), at.join("x.db"), &[]);
    let task = json!({ "handler": "noop", "delay": "1h", "parameters": { "filling": "x".repeat(20_000) } });
    let mut acknowledged = Vec::new();
    loop {
        let answer = server.http.post("/api/v1/tasks", &task);
        if answer.status != 201 {
            answer.expect(503);
            break;
        }
        acknowledged.push(text(&answer.body["id"]));
    }
    server.kill();
    // On the full disk it may start or say why not; it must not damage anything.
    if let Some(url) = server.try_restart() {
        server.http.base = url;
        server.kill();
    }
    disk.resize("64m");
    server.restart();
    for id in &acknowledged {
        assert_eq!(server.task(id)["status"], "pending");
    }
    server.finish();
}

#[test]
fn a_node_on_a_full_disk_can_be_stopped() {
    let place = directory();
    let at = place.path().join("disk");
    let Some(disk) = SmallDisk::mount(&at, "2m") else {
        println!("skipped: mounting a file system is not permitted here");
        return;
    };
    let mut server = Server::start_on(directory(), at.join("x.db"), &["--grace", "1"]);
    let gate = server.file("gate");
    let running = server.create(&shell(r#"until [ -e "$1" ]; do sleep 0.05; done"#, &gate));
    server.wait(&running, "running");
    let task = json!({ "handler": "noop", "delay": "1h", "parameters": { "filling": "x".repeat(20_000) } });
    let acknowledged = (0..1_000)
        .take_while(|_| server.http.post("/api/v1/tasks", &task).status == 201)
        .count();
    std::fs::write(at.join("rest"), vec![0; 2 << 20]).unwrap_err();
    let began = std::time::Instant::now();
    server.signal(rustix::process::Signal::TERM);
    let status = server.wait_end(SOON);
    println!("{status} after {:?}", began.elapsed());
    assert!(status.code().is_some(), "{status}");
    disk.resize("64m");
    std::fs::write(&gate, "").unwrap();
    server.restart();
    server.wait_both(&running, "completed");
    let listed = server.http.all("/api/v1/tasks?status=pending").len();
    assert_eq!(listed, acknowledged);
    server.finish();
}
