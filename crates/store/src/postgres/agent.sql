-- Agents, and which session of each may claim. Each claim of one notes when, in place: no index holds it, and a page has
-- room for the next version.
CREATE TABLE pensum.agent(
    namespace text NOT NULL, name text NOT NULL, settings text NOT NULL, session bigint, fenced bigint[] NOT NULL,
    draining_at bigint, seen_at bigint, put_by text NOT NULL, created_at bigint NOT NULL, changed_at bigint NOT NULL,
    version bigint NOT NULL, PRIMARY KEY (namespace, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX agent_session ON pensum.agent(session) WHERE session IS NOT NULL;

-- What sessions of agents have leased; leases of nodes are not in it, and cost nothing more.
CREATE INDEX live_agent ON pensum.live(node) WHERE (flags & 16777216) <> 0;
