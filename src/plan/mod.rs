//! Plan files: what `pensum run` reads, shows and goes on with.

pub(crate) mod interpolate;
pub(crate) mod parse;
pub(crate) mod resume;
pub(crate) mod summary;
pub(crate) mod view;
