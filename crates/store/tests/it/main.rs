//! The tests of the stores, in one binary.

mod conformance;
mod random;
mod sqlite_files;
mod sqlite_suite;
mod stores;
