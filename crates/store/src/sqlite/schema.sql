CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE manifest(id INTEGER PRIMARY KEY CHECK (id = 1), entries BLOB NOT NULL);
CREATE TABLE class(
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, queue TEXT NOT NULL, handler TEXT NOT NULL, requires TEXT NOT NULL
);
CREATE TABLE name(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE counter(
    class INTEGER PRIMARY KEY, completed INTEGER NOT NULL, failed INTEGER NOT NULL, cancelled INTEGER NOT NULL,
    executions INTEGER NOT NULL
);

-- Written once at enqueue; only a change by a person touches it again.
CREATE TABLE task(
    row INTEGER PRIMARY KEY, id BLOB NOT NULL, class INTEGER NOT NULL, created_at INTEGER NOT NULL, actor INTEGER,
    parameters TEXT NOT NULL, priority INTEGER, deadline INTEGER, timeout INTEGER, max_retries INTEGER, key TEXT,
    details TEXT, parent INTEGER, workflow INTEGER, created_by TEXT, assigned_to TEXT, unique_key TEXT,
    unique_ttl INTEGER
);
CREATE INDEX task_key ON task(key, row) WHERE key IS NOT NULL;
CREATE INDEX task_parent ON task(parent, row) WHERE parent IS NOT NULL;
CREATE INDEX task_workflow ON task(workflow, row) WHERE workflow IS NOT NULL;
CREATE INDEX task_created_by ON task(created_by, row) WHERE created_by IS NOT NULL;
CREATE INDEX task_assigned_to ON task(assigned_to, row) WHERE assigned_to IS NOT NULL;
CREATE TABLE tag(tag TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (tag, row)) WITHOUT ROWID;

-- One narrow row per unfinished task. NULL flags: a plain task that was never touched since its enqueue.
CREATE TABLE live(
    row INTEGER PRIMARY KEY, class INTEGER NOT NULL, run_at INTEGER NOT NULL, priority INTEGER, flags INTEGER,
    deadline INTEGER, key TEXT, state INTEGER, waiting_for INTEGER, wake_at INTEGER, signal TEXT, attempt INTEGER,
    failures INTEGER, crashes INTEGER, unmet INTEGER, ready_at INTEGER, started_at INTEGER, paused_at INTEGER,
    cancel_requested_at INTEGER, pause_requested_at INTEGER, expires_at INTEGER, queue_timeout INTEGER, parent INTEGER,
    version INTEGER, gate INTEGER, progress TEXT, error_kind TEXT, error_message TEXT, cancel_reason TEXT
);
CREATE INDEX live_gate ON live(gate, row) WHERE gate IS NOT NULL;

-- One row per finished task: its end, its terminal event and its last execution.
CREATE TABLE outcome(
    row INTEGER PRIMARY KEY, seq INTEGER NOT NULL, state INTEGER NOT NULL, flags INTEGER NOT NULL, attempt INTEGER,
    finished_at INTEGER NOT NULL, started_ago INTEGER, run_ago INTEGER NOT NULL, ready_ago INTEGER, executor INTEGER,
    wall REAL, result TEXT, version INTEGER, failures INTEGER, crashes INTEGER, unmet INTEGER,
    cancel_requested_at INTEGER, usage TEXT, error_kind TEXT, error_message TEXT, actor TEXT, progress TEXT
);
CREATE INDEX outcome_state ON outcome(state, row) WHERE state <> 3;

CREATE TABLE execution(
    row INTEGER NOT NULL, attempt INTEGER NOT NULL, executor TEXT NOT NULL, status INTEGER NOT NULL,
    started_at INTEGER NOT NULL, finished_at INTEGER, usage TEXT, result TEXT, error_kind TEXT, error_message TEXT,
    PRIMARY KEY (row, attempt)
) WITHOUT ROWID;
CREATE TABLE event(
    row INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, kind INTEGER NOT NULL, actor TEXT,
    attempt INTEGER NOT NULL, error_kind TEXT, error_message TEXT, PRIMARY KEY (row, seq)
) WITHOUT ROWID;
CREATE TABLE dependency(
    dependent INTEGER NOT NULL, position INTEGER NOT NULL, prerequisite INTEGER NOT NULL,
    PRIMARY KEY (dependent, position)
) WITHOUT ROWID;
CREATE INDEX dependency_prerequisite ON dependency(prerequisite, dependent);
CREATE TABLE unique_key(
    namespace TEXT NOT NULL, handler TEXT NOT NULL, key TEXT NOT NULL, row INTEGER NOT NULL, expires_at INTEGER,
    PRIMARY KEY (namespace, handler, key)
) WITHOUT ROWID;
CREATE INDEX unique_key_row ON unique_key(row);
CREATE INDEX unique_key_expires ON unique_key(expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE idempotency(
    namespace TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL, ids BLOB NOT NULL, expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency(expires_at);
CREATE TABLE inbox(
    row INTEGER NOT NULL, seq INTEGER NOT NULL, name TEXT NOT NULL, payload TEXT NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (row, seq)
) WITHOUT ROWID;
CREATE TABLE step(
    row INTEGER NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, result TEXT NOT NULL, PRIMARY KEY (row, name)
) WITHOUT ROWID;
CREATE TABLE checkpoint(row INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE log(
    row INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, attempt INTEGER NOT NULL, stream INTEGER NOT NULL,
    message TEXT NOT NULL, PRIMARY KEY (row, seq)
) WITHOUT ROWID;
