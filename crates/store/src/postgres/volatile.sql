-- The process that accepted a task which is not durable, while that is unfinished.
ALTER TABLE pensum.live ADD COLUMN acceptor bigint;
CREATE INDEX live_acceptor ON pensum.live(acceptor, row) WHERE acceptor IS NOT NULL;
