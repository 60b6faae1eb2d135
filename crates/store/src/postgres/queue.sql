-- Queues that somebody gave settings or a command. Starts of one with a rate change its bucket, in place: no index holds
-- it, and a page has room for the next version.
CREATE TABLE pensum.queue(
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, namespace text NOT NULL, name text NOT NULL,
    settings text NOT NULL, paused_at bigint, process_to bigint, bucket bigint NOT NULL, put_by text,
    created_at bigint NOT NULL, changed_at bigint NOT NULL, version bigint NOT NULL, UNIQUE (namespace, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);

-- One row, which grows with each change of a queue that a claim has to know: every claim compares it. Whoever changes a
-- queue locks it first.
CREATE TABLE pensum.queue_version(value bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO pensum.queue_version(value) VALUES (0);
