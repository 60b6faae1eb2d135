-- Queues with settings of their own. `bucket` is in nanoseconds, see `pensum_core::queue::Bucket`.
CREATE TABLE queue(
    namespace TEXT NOT NULL, name TEXT NOT NULL, settings TEXT NOT NULL, paused_at INTEGER, process_to INTEGER,
    bucket INTEGER NOT NULL, put_by TEXT, created_at INTEGER NOT NULL, changed_at INTEGER NOT NULL,
    version INTEGER NOT NULL, PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
