//! Pensum.
