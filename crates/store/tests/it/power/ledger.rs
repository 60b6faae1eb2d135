//! What the workload asked and what it was answered, each a line in the order of the log.

use std::collections::BTreeMap;
use std::fmt;

use pensum_core::{State, TaskId, TaskRecord};

use super::log::{Log, Record};

/// What an answered verb did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Effect {
    /// Tasks that came into being; their parameters name the verb.
    pub(super) made: Vec<TaskId>,
    /// Tasks that ended, and how. Whoever completed by this verb has a result that names it.
    pub(super) ended: Vec<(TaskId, State)>,
    /// Tasks that are no more.
    pub(super) gone: Vec<TaskId>,
    /// Tasks that have a durable step named after the verb.
    pub(super) stepped: Vec<TaskId>,
    /// Tasks that wait for a signal.
    pub(super) waiting: Vec<TaskId>,
    /// Tasks whose attempt failed, and that will have another one.
    pub(super) retried: Vec<TaskId>,
    /// Running tasks that were asked to stop.
    pub(super) stopping: Vec<TaskId>,
    /// Tasks on the shelf and how they are; see [`shelf`].
    pub(super) shelf: Vec<(TaskId, String)>,
    /// Tasks that an agent was given, whose leases outlive the process.
    pub(super) given: Vec<TaskId>,
    /// Tasks that came into being and are not durable: all of them are there, or none.
    pub(super) volatile: Vec<TaskId>,
    /// Queues, agents and breakers that were changed, and how they stand.
    pub(super) stands: Vec<(String, String)>,
    /// The verb can be repeated under its idempotency key.
    pub(super) once: bool,
}

/// How a task is that no node claims: state, paused or not, unread signals.
pub(super) fn shelf(record: Option<&TaskRecord>, signals: usize) -> String {
    match record {
        None => "gone".to_owned(),
        Some(record) => {
            let life = &record.lifecycle;
            format!("{:?}/{}/{signals}", life.state, life.paused_at.is_some())
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("made", &self.made),
            ("gone", &self.gone),
            ("stepped", &self.stepped),
            ("waiting", &self.waiting),
            ("retried", &self.retried),
            ("stopping", &self.stopping),
            ("given", &self.given),
            ("volatile", &self.volatile),
        ];
        for (word, ids) in lists {
            ids.iter().try_for_each(|id| write!(f, " {word}={id}"))?;
        }
        for (id, state) in &self.ended {
            write!(f, " ended={id}:{}", state.code())?;
        }
        for (id, how) in &self.shelf {
            write!(f, " shelf={id}:{how}")?;
        }
        for (what, how) in &self.stands {
            write!(f, " stands={what}:{how}")?;
        }
        if self.once { f.write_str(" once=") } else { Ok(()) }
    }
}

impl Effect {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Effect {
        let mut effect = Effect::default();
        for word in words {
            let (what, rest) = word.split_once('=').unwrap();
            let (id, how) = rest.split_once(':').unwrap_or((rest, ""));
            if what == "once" {
                effect.once = true;
                continue;
            }
            if what == "stands" {
                effect.stands.push((id.to_owned(), how.to_owned()));
                continue;
            }
            let id: TaskId = id.parse().unwrap();
            match what {
                "made" => effect.made.push(id),
                "gone" => effect.gone.push(id),
                "stepped" => effect.stepped.push(id),
                "waiting" => effect.waiting.push(id),
                "retried" => effect.retried.push(id),
                "stopping" => effect.stopping.push(id),
                "given" => effect.given.push(id),
                "volatile" => effect.volatile.push(id),
                "ended" => effect.ended.push((id, State::from_code(how.parse().unwrap()).unwrap())),
                "shelf" => effect.shelf.push((id, how.to_owned())),
                other => panic!("the log says `{other}`"),
            }
        }
        effect
    }
}

/// One verb of the workload.
#[derive(Debug)]
pub(super) struct Verb {
    pub(super) number: u64,
    /// Where in the log it was about to be asked.
    asked: usize,
    /// Where it was answered.
    answered: usize,
    /// The tasks that it named.
    pub(super) touched: Vec<TaskId>,
    pub(super) effect: Effect,
}

/// All verbs of a run.
pub(super) struct Ledger {
    verbs: Vec<Verb>,
}

/// How a verb stands at a cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its effect is on the disk.
    Acknowledged,
    /// All of its effect is on the disk, or nothing.
    InFlight,
}

impl Ledger {
    /// The verbs of a log.
    pub(super) fn of(log: &Log) -> Ledger {
        let mut asked: BTreeMap<u64, (usize, Vec<TaskId>)> = BTreeMap::new();
        let mut verbs = Vec::new();
        for (at, record) in log.records.iter().enumerate() {
            let Record::Note(line) = record else { continue };
            let mut words = line.split(' ');
            let kind = words.next().unwrap();
            let number = words.next().unwrap().parse().unwrap();
            if kind == "ask" {
                asked.insert(number, (at, words.map(|id| id.parse().unwrap()).collect()));
            } else {
                let (asked, touched) = asked.remove(&number).unwrap();
                let effect = Effect::parse(words);
                verbs.push(Verb {
                    number,
                    asked,
                    answered: at,
                    touched,
                    effect,
                });
            }
        }
        assert!(asked.is_empty(), "verbs without an answer: {asked:?}");
        verbs.sort_by_key(|verb| verb.asked);
        Ledger { verbs }
    }

    /// The verbs that had been asked before a cut.
    pub(super) fn at(&self, cut: usize) -> impl Iterator<Item = (&Verb, Standing)> {
        let asked = self.verbs.iter().take_while(move |verb| verb.asked < cut);
        asked.map(move |verb| {
            let standing = if verb.answered < cut {
                Standing::Acknowledged
            } else {
                Standing::InFlight
            };
            (verb, standing)
        })
    }

    /// How many tasks were given to agents, how many came into being that are not durable, how many ended without having
    /// been named, and how often a queue, an agent or a breaker changed.
    pub(super) fn rare(&self) -> [usize; 4] {
        let sum = |count: fn(&Verb) -> usize| self.verbs.iter().map(count).sum();
        let unnamed = |verb: &Verb| {
            let ended = verb.effect.ended.iter();
            ended.filter(|(id, _)| !verb.touched.contains(id)).count()
        };
        [
            sum(|verb| verb.effect.given.len()),
            sum(|verb| verb.effect.volatile.len()),
            sum(unnamed),
            sum(|verb| verb.effect.stands.len()),
        ]
    }

    /// The places of all answers.
    pub(super) fn answers(&self) -> Vec<usize> {
        self.verbs.iter().map(|verb| verb.answered).collect()
    }
}
