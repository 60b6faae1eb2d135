//! A command in its cgroup: how its processes come there, what it counts, and its end.

use std::sync::Arc;

use rustix::process::Signal;
use tokio::task::{JoinHandle, spawn_blocking};

use super::cgroup::Group;
use super::handle::Shared;
use super::{signal, table};

impl Shared {
    /// Brings the first process into the command's cgroup, on another thread, for that may take a while. One whose memory the kernel
    /// bounds was stopped as it started, and goes on once it is there.
    pub(super) fn move_in(self: &Arc<Self>) -> Option<JoinHandle<()>> {
        let group = self.group.clone()?;
        let shared = Arc::clone(self);
        Some(spawn_blocking(move || {
            let root = shared.root.as_raw_nonzero().get();
            match group.admit(root) {
                Ok(()) => admit_children(&group, root),
                Err(error) => tracing::warn!(%error, "a command could not be moved into its cgroup; it is sampled"),
            }
            if group.bounded {
                shared.let_go();
            }
        }))
    }

    /// Lets the first process go on, unless somebody paused it meanwhile.
    fn let_go(&self) {
        let state = self.state.lock();
        if !state.paused() && !state.reaped {
            signal::send_group(self.root, Signal::CONT);
        }
    }

    /// Brings members into the command's cgroup that were seen outside.
    pub(super) async fn house_strays(&self) {
        let Some(group) = self.group.clone() else { return };
        let strays: Vec<(i32, u64)> = {
            let state = self.state.lock();
            let outside = state.tree.living().filter(|member| !member.housed);
            outside.map(|member| (member.pid, member.start)).collect()
        };
        if strays.is_empty() {
            return;
        }
        let house = move || Vec::from_iter(strays.into_iter().filter(|(pid, start)| group.house(*pid, *start)));
        let housed = spawn_blocking(house).await.unwrap_or_default();
        let mut state = self.state.lock();
        for (pid, start) in housed {
            state.tree.house(pid, start);
        }
    }

    /// Takes in what the command's cgroup counted until now.
    pub(super) async fn count(&self) {
        let Some(group) = self.group.clone() else { return };
        let before = self.state.lock().figures;
        if let Ok(figures) = spawn_blocking(move || group.figures(before)).await {
            self.state.lock().figures = figures;
        }
    }

    /// Kills what is in the command's cgroup.
    pub(super) async fn kill_cgroup(&self) {
        if let Some(group) = self.group.clone() {
            drop(spawn_blocking(move || group.kill()).await);
        }
    }

    /// Takes the last figures of the command's cgroup, whose processes have ended, and removes it.
    pub(super) async fn move_out(&self) {
        let Some(group) = self.group.clone() else { return };
        let before = self.state.lock().figures;
        let last = move || {
            let figures = group.last_figures(before);
            // Whatever no look found.
            group.kill();
            group.remove();
            figures
        };
        if let Ok(figures) = spawn_blocking(last).await {
            self.state.lock().figures = figures;
        }
    }
}

/// Brings in what a process had started before it came into its cgroup. Looks find whatever is missed here.
fn admit_children(group: &Group, parent: i32) {
    for child in table::children(parent) {
        if group.admit(child).is_ok() {
            admit_children(group, child);
        }
    }
}
