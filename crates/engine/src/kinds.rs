//! The kinds of errors that the engine and its built-in handlers give to attempts: the `error.type` of a task.

/// The attempt ran for longer than the task's `timeout`.
pub const TIMEOUT: &str = "timeout";
/// The attempt was silent for longer than the task's `heartbeat_timeout`.
pub const HEARTBEAT_TIMEOUT: &str = "heartbeat_timeout";
/// The handler panicked.
pub const PANIC: &str = "panic";
/// A handler's own failure that names no other kind.
pub const FAILED: &str = "failed";
/// A command ended with an exit code other than 0.
pub const EXIT_CODE: &str = "exit_code";
/// A signal ended a command.
pub const SIGNAL: &str = "signal";
/// A command could not be started.
pub const SPAWN: &str = "spawn";
/// A command used more memory than its limit.
pub const MEMORY_EXCEEDED: &str = "memory_exceeded";
/// A command used more processor time than its limit.
pub const CPU_EXCEEDED: &str = "cpu_exceeded";
/// A command ran for longer than its own `limits.wall`.
pub const WALL_EXCEEDED: &str = "wall_exceeded";
/// An HTTP call was answered with a status that was not expected.
pub const HTTP_STATUS: &str = "http_status";
/// An HTTP call got no answer.
pub const HTTP_CONNECT: &str = "http_connect";
/// The handler cannot read the task's parameters.
pub const BAD_PARAMETERS: &str = "bad_parameters";
/// The result is no JSON that a store can keep: too long, nested too deep, or with a NUL in it.
pub const BAD_RESULT: &str = "bad_result";
/// A checkpoint or a step's result is no JSON that a store can keep, or can be read back.
pub const BAD_CHECKPOINT: &str = "bad_checkpoint";
/// The store refused what the handler returned, such as a child that depends on a task that does not exist.
pub const BAD_OUTCOME: &str = "bad_outcome";
/// The node has no handler of the task's name.
pub const NO_HANDLER: &str = "no_handler";
/// The task is another node's by now.
pub const LEASE_LOST: &str = "lease_lost";
/// The store could not be reached.
pub const STORE_UNAVAILABLE: &str = "store_unavailable";

/// Given by the stores: not started before its `expires_at`.
pub const EXPIRED: &str = "expired";
/// Given by the stores: ready for longer than its `queue_timeout`.
pub const QUEUE_TIMEOUT: &str = "queue_timeout";
/// Given by the stores: cancelled to make room in its queue, or for it waited longer than that keeps tasks waiting.
pub const DROPPED: &str = pensum_core::capacity::DROPPED;
/// Given by the stores: a task that it depends on failed or was cancelled.
pub const DEPENDENCY_FAILED: &str = "dependency_failed";
/// Given by the stores: it brought its node down too often.
pub const CRASHED_NODE: &str = "crashed_node";
/// Given by the stores: cancelled, for it was not durable and the process that accepted it has ended.
pub const PROCESS_ENDED: &str = "process_ended";
/// Given by the stores: cancelled on request.
pub const CANCELLED: &str = "cancelled";
