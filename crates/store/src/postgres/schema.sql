-- The schema `pensum` stands for whichever schema the store was opened with.
CREATE TABLE pensum.class(
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, namespace text NOT NULL, queue text NOT NULL,
    handler text NOT NULL, requires text NOT NULL, UNIQUE (namespace, queue, handler, requires)
);
CREATE TABLE pensum.name(id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL UNIQUE);

-- How many tasks of a class count in which cell. Writers append what they change to `tally`, so that no two of them wait
-- for one row; upkeep folds it into `counter`. A count is the sum of both.
CREATE TABLE pensum.counter(class integer NOT NULL, cell smallint NOT NULL, n bigint NOT NULL, PRIMARY KEY (class, cell));
CREATE TABLE pensum.tally(class integer NOT NULL, cell smallint NOT NULL, n bigint NOT NULL)
  WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0);

-- Row numbers of tasks; a task's id carries its row.
CREATE SEQUENCE pensum.task_row AS bigint MINVALUE 1 START 1 MAXVALUE 1099511627775 NO CYCLE;

-- Written once at enqueue; only a change by a person touches it again.
CREATE TABLE pensum.task(
    row bigint PRIMARY KEY, id uuid NOT NULL, class integer NOT NULL, created_at bigint NOT NULL, actor integer,
    parameters text NOT NULL, priority smallint, deadline bigint, timeout bigint, max_retries bigint, key text,
    details text, parent bigint, workflow bigint, created_by text, assigned_to text, unique_key text, unique_ttl bigint
);
CREATE INDEX task_key ON pensum.task(key, row) WHERE key IS NOT NULL;
CREATE INDEX task_parent ON pensum.task(parent, row) WHERE parent IS NOT NULL;
CREATE INDEX task_workflow ON pensum.task(workflow, row) WHERE workflow IS NOT NULL;
CREATE INDEX task_created_by ON pensum.task(created_by, row) WHERE created_by IS NOT NULL;
CREATE INDEX task_assigned_to ON pensum.task(assigned_to, row) WHERE assigned_to IS NOT NULL;
CREATE TABLE pensum.tag(tag text NOT NULL, row bigint NOT NULL, PRIMARY KEY (tag, row));
CREATE INDEX tag_row ON pensum.tag(row);

-- One narrow row per unfinished task. `rank` is the priority with its sign turned, so that one index gives the claim
-- order; `gate` says why a row cannot be claimed (0: it can); `due_at` is when the gate opens by itself, for a running
-- task when its lease ends, and for one whose key's turn has come since when; `timer_at` is when a queued task expires or
-- has waited too long.
CREATE TABLE pensum.live(
    row bigint PRIMARY KEY, class integer NOT NULL, rank smallint NOT NULL, deadline bigint NOT NULL,
    run_at bigint NOT NULL, gate smallint NOT NULL, flags integer NOT NULL, due_at bigint, timer_at bigint,
    scope text, state smallint, waiting_for smallint, wake_at bigint, signal text, attempt bigint, failures bigint,
    crashes bigint, unmet bigint, ready_at bigint, started_at bigint, paused_at bigint, cancel_requested_at bigint,
    pause_requested_at bigint, expires_at bigint, queue_timeout bigint, parent bigint, children bigint, version bigint,
    progress text, error_kind text, error_message text, cancel_reason text, lease uuid, node bigint, executor integer,
    taken_at bigint
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.1);
CREATE INDEX live_ready ON pensum.live(class, rank, deadline, row) WHERE gate = 0;
CREATE INDEX live_gate ON pensum.live(gate, due_at) WHERE gate <> 0;
-- What lists by status walk along; it leaves out the gates that every task passes.
CREATE INDEX live_held ON pensum.live(gate, row) WHERE gate BETWEEN 1 AND 5;
CREATE INDEX live_timer ON pensum.live(timer_at) WHERE timer_at IS NOT NULL;
CREATE INDEX live_scope ON pensum.live(scope, gate, rank, deadline, row) WHERE scope IS NOT NULL;
-- The order that only this index has, and that whoever looks for suspects asks for: see `first_due`.
CREATE INDEX live_suspect ON pensum.live((flags & 16384), row) WHERE gate = 0 AND (flags & 16384) <> 0;

-- One row per finished task: its end, its terminal event and its last execution.
CREATE TABLE pensum.outcome(
    row bigint PRIMARY KEY, state smallint NOT NULL, flags integer NOT NULL, attempt bigint,
    finished_at bigint NOT NULL, started_at bigint, run_at bigint NOT NULL, ready_at bigint, executor integer,
    wall double precision, result text, version bigint NOT NULL, failures bigint, crashes bigint, unmet bigint,
    cancel_requested_at bigint, usage text, error_kind text, error_message text, actor text, progress text
) WITH (fillfactor = 100);
CREATE INDEX outcome_state ON pensum.outcome(state, row) WHERE state <> 3;

CREATE TABLE pensum.execution(
    row bigint NOT NULL, attempt bigint NOT NULL, executor text NOT NULL, status smallint NOT NULL,
    started_at bigint NOT NULL, finished_at bigint, usage text, result text, error_kind text, error_message text,
    PRIMARY KEY (row, attempt)
);
CREATE TABLE pensum.event(
    row bigint NOT NULL, seq bigint NOT NULL, at bigint NOT NULL, kind smallint NOT NULL, actor text,
    attempt bigint NOT NULL, error_kind text, error_message text, PRIMARY KEY (row, seq)
);
CREATE TABLE pensum.dependency(
    dependent bigint NOT NULL, position integer NOT NULL, prerequisite bigint NOT NULL, PRIMARY KEY (dependent, position)
);
CREATE INDEX dependency_prerequisite ON pensum.dependency(prerequisite, dependent);
CREATE TABLE pensum.unique_key(
    namespace text NOT NULL, handler text NOT NULL, key text NOT NULL, row bigint NOT NULL, expires_at bigint,
    PRIMARY KEY (namespace, handler, key)
);
CREATE INDEX unique_key_row ON pensum.unique_key(row);
CREATE INDEX unique_key_expires ON pensum.unique_key(expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE pensum.idempotency(
    namespace text NOT NULL, key text NOT NULL, digest bytea NOT NULL, ids bytea NOT NULL, expires_at bigint NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX idempotency_expires ON pensum.idempotency(expires_at);
CREATE TABLE pensum.inbox(
    row bigint NOT NULL, seq bigint NOT NULL, name text NOT NULL, payload text NOT NULL, at bigint NOT NULL,
    PRIMARY KEY (row, seq)
);
CREATE TABLE pensum.step(
    row bigint NOT NULL, name text NOT NULL, seq bigint NOT NULL, result text NOT NULL, PRIMARY KEY (row, name)
);
CREATE TABLE pensum.checkpoint(row bigint PRIMARY KEY, state text NOT NULL);
CREATE TABLE pensum.log(
    row bigint NOT NULL, seq bigint NOT NULL, at bigint NOT NULL, attempt bigint NOT NULL, stream smallint NOT NULL,
    message text NOT NULL, PRIMARY KEY (row, seq)
);

-- The incarnations of nodes. `commands` grows with each request to a task that the node holds.
CREATE TABLE pensum.node(
    id bigint PRIMARY KEY, name text NOT NULL, version text NOT NULL, address text, started_at bigint NOT NULL,
    seen_at bigint NOT NULL, expires_at bigint NOT NULL, slots bigint NOT NULL, running bigint NOT NULL,
    commands bigint NOT NULL
) WITH (fillfactor = 50);

-- Tasks that other programs enqueue with a plain INSERT, inside transactions of their own. A node admits them; what it
-- refuses stays here with the reason.
CREATE TABLE pensum.intake(
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task jsonb NOT NULL,
    namespace text NOT NULL DEFAULT 'default' CHECK (namespace ~ '^[A-Za-z0-9_.:/-]{1,200}$'),
    actor text NOT NULL DEFAULT current_user CHECK (char_length(actor) BETWEEN 1 AND 200 AND actor !~ '[[:cntrl:]]'),
    created_at timestamptz NOT NULL DEFAULT now(), rejected_at timestamptz, error text
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX intake_open ON pensum.intake(id) WHERE rejected_at IS NULL;
