-- Circuit breakers. `memory` is what a breaker has seen, see `pensum_core::breaker::BreakerMemory`.
CREATE TABLE breaker(
    namespace TEXT NOT NULL, name TEXT NOT NULL, settings TEXT NOT NULL, memory TEXT NOT NULL, put_by TEXT NOT NULL,
    created_at INTEGER NOT NULL, changed_at INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
