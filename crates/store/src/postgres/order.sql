-- When a task that waits stands one level higher in the claim order; null where its queue does not age what waits.
ALTER TABLE pensum.live ADD COLUMN rises_at bigint;
CREATE INDEX live_rises ON pensum.live(rises_at) WHERE rises_at IS NOT NULL AND gate IN (0, 7);

-- Behind the deadlines, which come first, stand ages: see `pensum_core::order::place`.
UPDATE pensum.live SET deadline = 9223370937343148031 + row WHERE deadline = 9223372036854775807;

-- When the keys of fair queues were served last, as numbers of the sequence that row numbers are from.
CREATE TABLE pensum.turn(scope text PRIMARY KEY, number bigint NOT NULL)
  WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0);
