//! The agents: `pensum agent run` on machines of their own, one process after the other.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pensum_core::NodeId;
use pensum_sim::{AgentName, AgentOrder, AgentPlan, Executor, Remote, What, agent_id, capabilities};
use rustix::process::{Pid, Signal, kill_process};

use super::nodes::Machines;
use super::plan::LEASE;
use super::record::Record;
use crate::harness::program;

/// How often somebody looks whether an agent lives.
const LOOK: Duration = Duration::from_millis(10);
/// Between two starts of an agent whose node does not answer.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// Longest end in good order of an agent whose node may be gone.
const ENDS_IN: Duration = Duration::from_secs(20);
/// How long its runs may go on after SIGTERM.
const GRACE: &str = "1s";

/// A process that runs, and was not waited for.
struct Process {
    pid: Pid,
    name: AgentName,
    frozen: bool,
    stopping: bool,
}

/// One machine.
struct Seat {
    plan: AgentPlan,
    now: Mutex<Option<Process>>,
}

/// All agents of a scenario.
pub(super) struct Agents {
    seats: Vec<Seat>,
    over: AtomicBool,
    /// How many were killed.
    deaths: Mutex<u32>,
    /// What is wrong with them.
    complaints: Mutex<Vec<String>>,
}

/// Who runs what a process of an agent has started.
fn executor(name: AgentName) -> Executor {
    Executor::Agent {
        agent: name.agent,
        // Nobody outside knows its session; each process has its own.
        session: NodeId(u64::from(name.life) + 1),
    }
}

impl Agents {
    pub(super) fn new(plans: &[AgentPlan]) -> Agents {
        let seat = |plan: &AgentPlan| Seat {
            plan: plan.clone(),
            now: Mutex::default(),
        };
        Agents {
            seats: plans.iter().map(seat).collect(),
            over: AtomicBool::new(false),
            deaths: Mutex::default(),
            complaints: Mutex::default(),
        }
    }

    /// Runs the process of an agent again and again until all are to stop.
    pub(super) fn supervise(&self, agent: usize, dir: &Path, machines: &Machines, record: &Record) {
        let seat = &self.seats[agent];
        let Some(base) = self.node(agent, machines) else { return };
        for life in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let name = AgentName { agent, life };
            let said = dir.join(format!("{name}.err"));
            let mut child = start(agent, &seat.plan, &base, dir, &said);
            let pid = Pid::from_child(&child);
            machines
                .pids
                .lock()
                .unwrap()
                .insert(pid.as_raw_nonzero().get(), executor(name));
            *seat.now.lock().unwrap() = Some(Process {
                pid,
                name,
                frozen: false,
                stopping: false,
            });
            record.add(What::Remote(Remote::Starts(name)));
            let status = self.watch(seat, &mut child);
            let (how, is_killed) = match (status.code(), status.signal()) {
                (Some(0), _) => ("leaves in good order", false),
                (_, Some(signal)) if signal == Signal::KILL.as_raw() => ("DIES", true),
                _ => ("ends", false),
            };
            record.add(What::Remote(Remote::Ends(name, how)));
            *self.deaths.lock().unwrap() += u32::from(is_killed);
            let words = std::fs::read_to_string(&said).unwrap_or_default();
            // Without a node it does not begin.
            let began = words.contains("waits for work");
            if began && how == "ends" {
                self.complain(format!("{name} ended by itself: {status}\n{words}"));
            }
            let pause = Duration::from_millis(seat.plan.restart_ms);
            std::thread::sleep(if began { pause } else { TRY_AGAIN });
        }
    }

    /// Where an agent finds its node, once there is one: each keeps its address.
    fn node(&self, agent: usize, machines: &Machines) -> Option<String> {
        while !self.over.load(Ordering::SeqCst) {
            if let Some(found) = machines.find(agent) {
                return Some(found.base);
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    fn watch(&self, seat: &Seat, child: &mut Child) -> ExitStatus {
        let mut end = None;
        loop {
            if self.over.load(Ordering::SeqCst) {
                self.signal(seat, Signal::TERM);
                let end = *end.get_or_insert_with(|| Instant::now() + ENDS_IN);
                if Instant::now() > end {
                    self.complain("an agent does not end".to_owned());
                    self.signal(seat, Signal::KILL);
                }
            }
            {
                let mut now = seat.now.lock().unwrap();
                if let Some(status) = child.try_wait().unwrap() {
                    *now = None;
                    return status;
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Signals the process of an agent, where there is one; a second SIGTERM would end it at once.
    fn signal(&self, seat: &Seat, signal: Signal) {
        if let Some(found) = &mut *seat.now.lock().unwrap()
            && !(signal == Signal::TERM && found.stopping)
        {
            kill_process(found.pid, signal).unwrap();
            found.stopping |= signal == Signal::TERM;
        }
    }

    /// What befalls an agent.
    pub(super) fn befall(&self, agent: usize, order: AgentOrder, record: &Record) {
        let Some(seat) = self.seats.get(agent) else { return };
        match order {
            AgentOrder::Freeze { for_ms } => freeze(seat, Duration::from_millis(for_ms), record),
            AgentOrder::Leave => self.signal(seat, Signal::TERM),
            _ => self.signal(seat, Signal::KILL),
        }
    }

    pub(super) fn complain(&self, what: String) {
        self.complaints.lock().unwrap().push(what);
    }

    /// Stops all agents in good order, and waits for that: each tells its node that it goes.
    pub(super) fn leave(&self) {
        self.over.store(true, Ordering::SeqCst);
        while self.seats.iter().any(|seat| seat.now.lock().unwrap().is_some()) {
            std::thread::sleep(LOOK);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// How many were killed, and what was wrong with them.
    pub(super) fn end(self) -> (u32, Vec<String>) {
        (self.deaths.into_inner().unwrap(), self.complaints.into_inner().unwrap())
    }
}

fn start(agent: usize, plan: &AgentPlan, base: &str, dir: &Path, said: &Path) -> Child {
    let mut command: Command = program();
    command.args(["agent", "run", "--url", base, "--id", &agent_id(agent)]);
    for capability in capabilities(plan) {
        command.args(["-C", &capability]);
    }
    command.args(["--max", &plan.slots.to_string(), "--grace", GRACE]);
    command.args(["--lease", &format!("{}s", LEASE.as_secs()), "--", "sh"]);
    command.arg(dir.join("agent.sh")).arg(dir);
    let file = std::fs::File::create(said).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    command.process_group(0).spawn().unwrap()
}

/// SIGSTOP, and SIGCONT after a while to whoever lives on then.
fn freeze(seat: &Seat, time: Duration, record: &Record) {
    let name = {
        let mut now = seat.now.lock().unwrap();
        let Some(found) = now.as_mut().filter(|found| !found.frozen) else {
            return;
        };
        kill_process(found.pid, Signal::STOP).unwrap();
        found.frozen = true;
        record.add(What::Remote(Remote::Freezes(found.name, time)));
        found.name
    };
    std::thread::sleep(time);
    let mut now = seat.now.lock().unwrap();
    if let Some(found) = now.as_mut().filter(|found| found.name == name) {
        kill_process(found.pid, Signal::CONT).unwrap();
        found.frozen = false;
        record.add(What::Remote(Remote::Thaws(name)));
    }
}
