//! Commands whose node died without a chance to stop them.

use rustix::process::Signal;

use super::{signal, table};

/// Kills the processes of commands whose node is gone, and returns how many there were.
///
/// A node killed outright (`kill -9`, out of memory) leaves its commands running. Each carries in its environment the id and start time
/// of the node that started it; where no such process exists any more, nobody watches the command and its task will be, or was, run
/// again. Only processes of this namespace of process ids are looked at. Reads `/proc` once: some milliseconds; meant for a node's start.
pub fn kill_orphans() -> usize {
    let entries = table::read(0, &mut table::Marks::new());
    let mut killed = 0;
    for entry in &entries {
        let Some((namespace, pid, start)) = entry.mark.as_deref().and_then(node_of) else {
            continue;
        };
        let node_lives = entries
            .iter()
            .any(|other| other.pid == pid && other.start == start && other.alive());
        if namespace == table::OWN.namespace && !node_lives {
            tracing::warn!(pid = entry.pid, node = pid, "killing a process whose node has died");
            signal::send_exact(entry.pid, entry.start, Signal::KILL);
            killed += 1;
        }
    }
    killed
}

/// The namespace, id and start time of the node that made a mark.
fn node_of(mark: &str) -> Option<(u64, i32, u64)> {
    let mut parts = mark.split('-');
    Some((
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_the_commands_of_a_dead_node_are_killed() {
        let own = &*table::OWN;
        let start = |mark: String| {
            Command::new("sleep")
                .arg("60")
                .env(table::MARK, mark)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut living = start(table::marker());
        let mut foreign = start(format!("{}-{}-{}-1", own.namespace + 1, i32::MAX, own.start));
        let mut orphan = start(format!("{}-{}-{}-1", own.namespace, own.pid, own.start + 1));
        // A node that another test starts at this moment may be first.
        kill_orphans();
        assert!(!orphan.wait().unwrap().success());
        for spared in [&mut living, &mut foreign] {
            assert!(spared.try_wait().unwrap().is_none());
            spared.kill().unwrap();
            spared.wait().unwrap();
        }
    }
}
