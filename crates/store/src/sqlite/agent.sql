-- Agents, and the leases that their sessions hold: an agent outlives the process that owns this file, and so do they.
CREATE TABLE agent(
    namespace TEXT NOT NULL, name TEXT NOT NULL, settings TEXT NOT NULL, session INTEGER, fenced TEXT NOT NULL,
    draining_at INTEGER, seen_at INTEGER, put_by TEXT NOT NULL, created_at INTEGER NOT NULL, changed_at INTEGER NOT NULL,
    version INTEGER NOT NULL, PRIMARY KEY (namespace, name)
) WITHOUT ROWID;
CREATE TABLE agent_lease(
    row INTEGER PRIMARY KEY, lease BLOB NOT NULL, session INTEGER NOT NULL, attempt INTEGER NOT NULL,
    started_at INTEGER NOT NULL, taken_at INTEGER NOT NULL, alone INTEGER NOT NULL, checkpointed INTEGER NOT NULL,
    executor TEXT NOT NULL
);
