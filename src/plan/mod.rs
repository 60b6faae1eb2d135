//! Plan files.
pub mod interpolate;
pub mod parse;
