//! The tests of the core that see it from outside.

mod transitions;
