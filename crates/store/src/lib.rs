//! Stores of Pensum: embedded SQLite, migrations, and the conformance suite.
