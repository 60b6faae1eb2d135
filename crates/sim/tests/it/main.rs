//! Worlds that were never lived through before, those that broke a promise once, and bugs that must be caught.

#![cfg(test)]

mod mutants;
mod page;
mod regressions;
mod worlds;
