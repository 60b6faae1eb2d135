//! Many images of one log: made, checked, counted.

use std::collections::BTreeMap;

use super::check;
use super::cut::Moment;
use super::dice::Dice;
use super::disk::{Disk, Syncs};
use super::image::{Image, Order};
use super::ledger::{Ledger, Standing};
use super::log::Log;
use super::workload::STORE;

/// What the images of a run were like.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) images: usize,
    moments: BTreeMap<Moment, usize>,
    orders: BTreeMap<Order, usize>,
    /// Images with a commit, or with pages of the log on their way into the database.
    pub(super) in_commit: usize,
    pub(super) in_fold: usize,
    pub(super) with_lost: usize,
    pub(super) with_torn: usize,
    lost: usize,
    torn: usize,
    kept: usize,
    pub(super) acknowledged: usize,
    pub(super) in_flight: usize,
}

/// What was wrong with one image.
pub(super) struct Failure {
    pub(super) wrong: Vec<String>,
    image: String,
}

/// Makes images of a log and checks them.
pub(super) fn examine(log: &Log, syncs: Syncs, cuts: Vec<(Moment, usize)>, mut dice: Dice) -> (Figures, Vec<Failure>) {
    let ledger = Ledger::of(log);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut disk = Disk::new(log, syncs);
    let mut figures = Figures::default();
    let mut failures = Vec::new();
    for (moment, cut) in cuts {
        disk.advance(cut);
        let mut image = Image::of(&disk, dice.split());
        if moment == Moment::FirstPage {
            image.tear_start(STORE, &mut dice);
        }
        let home = tempfile::tempdir().unwrap();
        image.write(home.path()).unwrap();
        let wrong = runtime.block_on(check::check(home.path(), &ledger, cut));
        figures.add(moment, &disk, &image);
        for (_, standing) in ledger.at(cut) {
            match standing {
                Standing::Acknowledged => figures.acknowledged += 1,
                Standing::InFlight => figures.in_flight += 1,
            }
        }
        if !wrong.is_empty() {
            let image = format!(
                "cut {cut} of {} ({moment:?}, {:?} order, {:?}):\n{}",
                log.records.len(),
                image.order,
                image.damage,
                log.around(cut)
            );
            failures.push(Failure { wrong, image });
        }
    }
    (figures, failures)
}

impl Figures {
    fn add(&mut self, moment: Moment, disk: &Disk<'_>, image: &Image) {
        self.images += 1;
        *self.moments.entry(moment).or_default() += 1;
        *self.orders.entry(image.order).or_default() += 1;
        self.in_commit += usize::from(disk.has_pending(&format!("{STORE}-wal")));
        self.in_fold += usize::from(disk.has_pending(STORE));
        self.with_lost += usize::from(image.damage.lost > 0);
        self.with_torn += usize::from(image.damage.torn > 0);
        self.lost += image.damage.lost;
        self.torn += image.damage.torn;
        self.kept += image.damage.kept;
    }
}

/// Names the seed, the cuts and what was wrong.
#[track_caller]
pub(super) fn fail_on(failures: &[Failure], seed: u64) {
    let shown = failures.iter().take(3).map(|failure| {
        let wrong: Vec<_> = failure.wrong.iter().take(10).cloned().collect();
        format!("PENSUM_TEST_SEED={seed}, {}\n{}", failure.image, wrong.join("\n"))
    });
    let shown: Vec<_> = shown.collect();
    let count = failures.len();
    assert!(failures.is_empty(), "{count} bad images\n{}", shown.join("\n\n"));
}
