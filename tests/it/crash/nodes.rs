//! The nodes: one process after the other on each machine, until the test is over.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pensum_sim::{Executor, NodeName, What};
use rustix::process::{Pid, Signal, kill_process};

use super::record::Record;
use crate::harness::{Http, Server};

/// How often a machine looks whether its node lives.
const LOOK: Duration = Duration::from_millis(10);
/// Between two starts of a node whose store does not answer.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Longest time that a node may fail to start, outages included.
const STARTS_IN: Duration = Duration::from_secs(60);

/// A process that runs.
#[derive(Clone)]
pub(super) struct Incarnation {
    pub(super) name: NodeName,
    pub(super) base: String,
    pid: Pid,
    frozen: bool,
    /// Was asked to stop; a second SIGTERM would end it at once.
    stopping: bool,
}

/// One machine.
pub(super) struct Machine {
    restart: Duration,
    /// Taken to look, and to signal: a process that stands here was not waited for, so that its id is its own.
    now: Mutex<Option<Incarnation>>,
}

/// All machines of a scenario.
pub(super) struct Machines {
    all: Vec<Machine>,
    over: AtomicBool,
    /// Who had which process id, agents among them.
    pub(super) pids: Mutex<BTreeMap<i32, Executor>>,
    /// Each node listens where it listened first, for those who look for it there.
    keep_addresses: bool,
    /// Nodes that ended by themselves or did not start, and what they said.
    pub(super) complaints: Mutex<Vec<String>>,
}

impl Machines {
    /// With so long between a death and the next start for each.
    pub(super) fn new(restarts: impl Iterator<Item = Duration>, keep_addresses: bool) -> Machines {
        let machine = |restart| Machine {
            restart,
            now: Mutex::default(),
        };
        Machines {
            all: restarts.map(machine).collect(),
            over: AtomicBool::new(false),
            pids: Mutex::default(),
            keep_addresses,
            complaints: Mutex::default(),
        }
    }

    /// The node that a client meant, or another one that runs.
    pub(super) fn find(&self, node: usize) -> Option<Incarnation> {
        let count = self.all.len();
        (0..count).find_map(|offset| self.all[(node + offset) % count].now.lock().unwrap().clone())
    }

    pub(super) fn all_run(&self) -> bool {
        self.all.iter().all(|machine| machine.now.lock().unwrap().is_some())
    }

    /// Runs the node of a machine again and again until all are to stop.
    pub(super) fn supervise(&self, node: usize, mut server: Server, record: &Record) {
        let machine = &self.all[node];
        for life in 0.. {
            let name = NodeName { node, life };
            if !self.start(machine, name, &mut server, record) {
                return;
            }
            self.watch(machine, name, &mut server, record);
            if self.is_over() {
                return;
            }
            std::thread::sleep(machine.restart);
        }
    }

    /// False where it is not to start any more.
    fn start(&self, machine: &Machine, name: NodeName, server: &mut Server, record: &Record) -> bool {
        let end = Instant::now() + STARTS_IN;
        while !self.is_over() {
            if let Some(base) = server.try_restart() {
                if self.keep_addresses {
                    server.http = Http::new(base.as_str());
                    server.keep_address();
                }
                self.pids.lock().unwrap().insert(server.pid(), Executor::Node(name));
                *machine.now.lock().unwrap() = Some(Incarnation {
                    name,
                    base,
                    pid: Pid::from_raw(server.pid()).unwrap(),
                    frozen: false,
                    stopping: false,
                });
                record.add(What::NodeStarts(name));
                return true;
            }
            if Instant::now() > end {
                self.complain(format!("{name} does not start:\n{}", server.log()));
                return false;
            }
            std::thread::sleep(TRY_AGAIN);
        }
        false
    }

    fn watch(&self, machine: &Machine, name: NodeName, server: &mut Server, record: &Record) {
        let status = loop {
            if self.is_over() {
                self.stop(name.node);
            }
            {
                let mut now = machine.now.lock().unwrap();
                if let Some(status) = server.ended() {
                    *now = None;
                    break status;
                }
            }
            std::thread::sleep(LOOK);
        };
        record.add(match status.code() {
            Some(0) => What::NodeLeaves(name),
            _ => What::NodeDies(name),
        });
        if status.code() != Some(0) && status.signal() != Some(Signal::KILL.as_raw()) {
            self.complain(format!("{name} ended by itself: {status}\n{}", server.log()));
        }
    }

    fn complain(&self, what: String) {
        self.complaints.lock().unwrap().push(what);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// SIGKILL, which spares no process; nothing where there is none.
    pub(super) fn kill(&self, node: usize) {
        if let Some(found) = &*self.all[node].now.lock().unwrap() {
            kill_process(found.pid, Signal::KILL).unwrap();
        }
    }

    /// SIGTERM, unless it was asked already; the next start follows.
    pub(super) fn stop(&self, node: usize) {
        let mut now = self.all[node].now.lock().unwrap();
        if let Some(found) = now.as_mut().filter(|found| !found.stopping) {
            kill_process(found.pid, Signal::TERM).unwrap();
            found.stopping = true;
        }
    }

    /// SIGSTOP, and SIGCONT after a while to whoever lives on then.
    pub(super) fn freeze(&self, node: usize, time: Duration, record: &Record) {
        let now = &self.all[node].now;
        let name = {
            let mut now = now.lock().unwrap();
            let Some(found) = now.as_mut().filter(|found| !found.frozen) else {
                return;
            };
            kill_process(found.pid, Signal::STOP).unwrap();
            found.frozen = true;
            record.add(What::NodeFreezes(found.name, time));
            found.name
        };
        std::thread::sleep(time);
        let mut now = now.lock().unwrap();
        if let Some(found) = now.as_mut().filter(|found| found.name == name) {
            kill_process(found.pid, Signal::CONT).unwrap();
            found.frozen = false;
            record.add(What::NodeThaws(name));
        }
    }

    /// Stops all nodes in good order.
    pub(super) fn leave(&self) {
        self.over.store(true, Ordering::SeqCst);
    }
}
