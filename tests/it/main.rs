//! The program from the outside: real processes of `pensum`, talked to over HTTP and by its own command line, killed,
//! stopped, started again, and checked against what they acknowledged.
//!
//! `PENSUM_TEST_LONG=1` runs the heavier versions; `PENSUM_TEST_SEED=N` repeats a run's random choices;
//! `PENSUM_TEST_PROGRAM=FILE` tests another build.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests watch processes that live by the real clock"
)]
#![expect(clippy::print_stdout, reason = "what a run was like is shown when it fails")]
#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod agent_run;
mod agents;
mod bench;
mod beside;
mod chaos;
mod cli;
mod cluster;
mod crash;
mod crashes;
mod deploy;
mod disk;
mod docs;
mod harness;
mod hostile;
mod house;
mod intake;
mod order;
mod pausing;
mod plan;
mod policies;
mod queues;
mod restart;
mod retries;
mod shutdown;
mod sleepers;
mod steering;
mod supervised;
mod survive;
mod timeouts;
mod volatile;
mod wrong;
