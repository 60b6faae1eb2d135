//! The HTTP API of Pensum.
