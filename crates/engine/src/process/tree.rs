//! The processes of one command, found again at each look, and what they have used.

use std::collections::{HashMap, HashSet};

use super::table::{self, Entry, Table, Transfer};

/// All processes of one command that are known, by id and start time, and their use of memory and processor so far.
pub(super) struct Tree {
    root: i32,
    root_start: u64,
    mark: String,
    members: HashMap<(i32, u64), Member>,
    /// Number of the last look taken in. Looks before it, and those begun before the command was started, would show less than is known.
    last_look: u64,
    /// Clock ticks of members that are gone and that no member waited for, so nobody else's figure has them.
    settled_ticks: u64,
    /// What those members moved.
    settled_transfer: Transfer,
    resident_peak: u64,
    single_peak: u64,
    cpu_seconds: f64,
}

/// One process of the tree at the last look.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) pid: i32,
    pub(super) start: u64,
    pub(super) group: i32,
    pub(super) stopped: bool,
    /// It is in the command's cgroup, or was found in one below since.
    pub(super) housed: bool,
    alive: bool,
    parent: i32,
    ticks: u64,
    transfer: Option<Transfer>,
    resident: u64,
    virtual_size: u64,
}

impl Tree {
    /// The tree of a process that has just been started.
    pub(super) fn new(root: i32, root_start: u64, mark: String) -> Self {
        Self {
            root,
            root_start,
            mark,
            members: HashMap::new(),
            last_look: table::looks_begun(),
            settled_ticks: 0,
            settled_transfer: Transfer::default(),
            resident_peak: 0,
            single_peak: 0,
            cpu_seconds: 0.0,
        }
    }

    /// Finds the members in a new look and adds up what they use. `group_is_ours` as long as the first process was not reaped: until
    /// then its id, which is the group's, cannot be given to another. `housed` are the processes that were in the command's cgroup
    /// after the look.
    pub(super) fn update(&mut self, table: &Table, group_is_ours: bool, housed: &HashSet<i32>) {
        if table.number <= self.last_look {
            return;
        }
        self.last_look = table.number;
        let own_pid = table::OWN.pid;
        let mut found: HashSet<i32> = HashSet::new();
        let mut queue: Vec<&Entry> = Vec::new();
        let mut children: HashMap<i32, Vec<&Entry>> = HashMap::new();
        for entry in table
            .entries
            .iter()
            .filter(|entry| entry.start >= self.root_start && entry.pid != own_pid)
        {
            children.entry(entry.parent).or_default().push(entry);
            let known = self.members.contains_key(&(entry.pid, entry.start));
            let in_group = housed.contains(&entry.pid) || (group_is_ours && entry.group == self.root);
            if (known || in_group || entry.mark.as_deref() == Some(self.mark.as_str())) && found.insert(entry.pid) {
                queue.push(entry);
            }
        }
        let mut now = HashMap::with_capacity(queue.len());
        while let Some(entry) = queue.pop() {
            let mut member = self.member(entry);
            member.housed = housed.contains(&entry.pid);
            now.insert((entry.pid, entry.start), member);
            for child in children.get(&entry.pid).into_iter().flatten() {
                if found.insert(child.pid) {
                    queue.push(child);
                }
            }
        }
        self.settle(&now);
        self.members = now;
        self.account();
    }

    /// Reads the first process alone, which is cheap enough to do often: its peak of memory, and, also after its end, its exact
    /// processor time with that of all children it waited for.
    pub(super) fn update_root(&mut self) {
        let Some(entry) = table::entry(self.root).filter(|entry| entry.start == self.root_start) else {
            return;
        };
        if let Some(peak) = table::resident_peak(self.root) {
            self.single_peak = self.single_peak.max(peak);
            self.resident_peak = self.resident_peak.max(peak);
        }
        if let Some(seconds) = table::precise_seconds(self.root) {
            self.cpu_seconds = self.cpu_seconds.max(seconds);
        }
        let member = self.member(&entry);
        self.members.insert((entry.pid, entry.start), member);
        self.account();
    }

    /// The members that have not ended.
    pub(super) fn living(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.alive)
    }

    /// Resident memory of all members at the last look, in bytes. A page that several share counts for each.
    pub(super) fn resident(&self) -> u64 {
        self.holders().map(|member| member.resident).sum()
    }

    /// The id and resident bytes of each member with memory of its own.
    pub(super) fn memory_holders(&self) -> Vec<(i32, u64)> {
        self.holders().map(|member| (member.pid, member.resident)).collect()
    }

    /// Members without those that run in their parent's memory, as a child does between `vfork` and `exec`: their sizes are the same to
    /// the page, which for two memories apart is all but impossible.
    fn holders(&self) -> impl Iterator<Item = &Member> {
        let sizes: HashMap<i32, (u64, u64)> = self
            .members
            .values()
            .map(|member| (member.pid, (member.resident, member.virtual_size)))
            .collect();
        self.members
            .values()
            .filter(move |member| sizes.get(&member.parent) != Some(&(member.resident, member.virtual_size)))
    }

    /// The most that [`resident`](Self::resident) ever was.
    pub(super) fn resident_peak(&self) -> u64 {
        self.resident_peak
    }

    /// The most resident memory that one of the members ever had alone, in bytes: no page counts twice.
    pub(super) fn single_peak(&self) -> u64 {
        self.single_peak
    }

    /// Notes that a member is in the command's cgroup.
    pub(super) fn house(&mut self, pid: i32, start: u64) {
        if let Some(member) = self.members.get_mut(&(pid, start)) {
            member.housed = true;
        }
    }

    /// Processor time of all members, also of those that ended, in seconds. Never falls.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds
    }

    /// What all members moved from and to storage, also those that ended; `None` where the kernel does not say it.
    pub(super) fn transfer(&self) -> Option<Transfer> {
        let known: Vec<Transfer> = self.members.values().filter_map(|member| member.transfer).collect();
        (!known.is_empty()).then(|| known.into_iter().fold(self.settled_transfer, Transfer::plus))
    }

    /// A process of the tree. Of one that has just ended the last that was known counts.
    fn member(&self, entry: &Entry) -> Member {
        let before = self.members.get(&(entry.pid, entry.start));
        Member {
            pid: entry.pid,
            start: entry.start,
            group: entry.group,
            stopped: matches!(entry.state, b'T' | b't'),
            housed: before.is_some_and(|member| member.housed),
            alive: entry.alive(),
            parent: entry.parent,
            ticks: entry.ticks,
            transfer: table::transfer(entry.pid).or_else(|| before?.transfer),
            resident: entry.resident,
            virtual_size: entry.virtual_size,
        }
    }

    /// Keeps what members used that are gone. One whose parent is a member was waited for by it, and is in its figure.
    fn settle(&mut self, now: &HashMap<(i32, u64), Member>) {
        let parents: HashSet<i32> = self.members.values().map(|member| member.pid).collect();
        for (key, member) in &self.members {
            if !now.contains_key(key) && !parents.contains(&member.parent) {
                self.settled_ticks += member.ticks;
                self.settled_transfer = self.settled_transfer.plus(member.transfer.unwrap_or_default());
            }
        }
    }

    fn account(&mut self) {
        self.resident_peak = self.resident_peak.max(self.resident());
        let largest = self.members.values().map(|member| member.resident).max();
        self.single_peak = self.single_peak.max(largest.unwrap_or(0));
        let ticks = self.settled_ticks + self.members.values().map(|member| member.ticks).sum::<u64>();
        self.cpu_seconds = self.cpu_seconds.max(ticks as f64 / procfs::ticks_per_second() as f64);
    }
}
