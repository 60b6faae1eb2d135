-- How many tasks of a key may have their turn beside one of the queue.
ALTER TABLE pensum.queue ADD COLUMN IF NOT EXISTS per_key integer NOT NULL
  GENERATED ALWAYS AS (coalesce((settings::jsonb ->> 'max_concurrent_per_key')::integer, 1)) STORED;
