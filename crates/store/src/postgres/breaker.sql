-- Circuit breakers. Ends of runs that they cover change what they have seen, in place: no index holds it, and a page has
-- room for the next version. A change that a claim has to know, as when one opens, changes the version of the queues, too.
CREATE TABLE pensum.breaker(
    namespace text NOT NULL, name text NOT NULL, settings text NOT NULL, memory text NOT NULL, put_by text NOT NULL,
    created_at bigint NOT NULL, changed_at bigint NOT NULL, version bigint NOT NULL, PRIMARY KEY (namespace, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
