-- The process that accepted a task which is not durable, while that is unfinished.
ALTER TABLE live ADD COLUMN acceptor INTEGER;
