"""Tasks and what belongs to one: attempts, history, log, dependencies, and why it does not run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from .records import Record


class TaskStatus(str, Enum):
    """The statuses of a task. `task.status == TaskStatus.FAILED` and `task.status == "failed"` say the same."""

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    RETRYING = "retrying"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskPriority(str, Enum):
    """The priorities of a task, least first. The text says the same, and so do the numbers 1 to 5."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"
    CRITICAL = "critical"


ENDED = frozenset({"completed", "failed", "cancelled"})
"""The statuses of tasks that have ended."""


@dataclass(frozen=True, kw_only=True)
class ErrorInfo(Record):
    """Why an attempt failed, or why a task was cancelled."""

    type: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """How far a running task says it is, in percent."""

    percent: float
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(Record):
    """The delays between attempts; what is None has its default."""

    strategy: str | None = None
    delay: timedelta | None = None
    factor: float | None = None
    max_delay: timedelta | None = None
    jitter: bool | str | None = None


@dataclass(frozen=True, kw_only=True)
class Resources(Record):
    """What a task needs of the machine."""

    cpu_cores: float | None = None
    memory_gb: float | None = None
    disk_gb: float | None = None
    gpu_memory_gb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """A task: what was asked for, and where it is. A timeout of zero is no limit."""

    id: str
    name: str
    handler: str
    task_type: str
    status: str
    queue: str
    priority: str
    created_at: datetime
    version: int
    parameters: Any = None
    timeout: timedelta
    max_retries: int
    retry: RetryPolicy
    attempt: int
    retry_count: int
    depends_on: tuple[str, ...] = ()
    on_dependency_failure: str = "cancel"
    requires: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    durable: bool = True
    description: str | None = None
    metadata: Any = None
    execution_context: Any = None
    waiting_for: str | None = None
    run_at: datetime | None = None
    deadline: datetime | None = None
    expires_at: datetime | None = None
    queue_timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    on_limit: str | None = None
    units: int = 1
    key: str | None = None
    agent_id: str | None = None
    resources: Resources | None = None
    created_by: str | None = None
    assigned_to: str | None = None
    progress: Progress | None = None
    result: Any = None
    error: ErrorInfo | None = None
    ready_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    paused_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    dead_lettered_at: datetime | None = None
    workflow_id: str | None = None
    parent_id: str | None = None
    schedule: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in ENDED

    @property
    def completed(self) -> bool:
        """Whether it has ended well."""
        return self.status == TaskStatus.COMPLETED


@dataclass(frozen=True, kw_only=True)
class Usage(Record):
    """What one attempt used: seconds, percent of one processor, and 10⁶ bytes: at the peak, read and written."""

    wall_seconds: float
    cpu_seconds: float | None = None
    cpu_percent: float | None = None
    memory_mb: float | None = None
    read_mb: float | None = None
    written_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Execution(Record):
    """One attempt of a task. `logs` is the route of its log lines."""

    id: str
    task_id: str
    attempt: int
    executor_id: str
    status: str
    started_at: datetime
    resource_usage: Usage
    logs: str
    finished_at: datetime | None = None
    result: Any = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True)
class Event(Record):
    """Something that happened to a task."""

    seq: int
    at: datetime
    kind: str
    attempt: int
    actor: str | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True)
class LogLine(Record):
    """A line that a task logged; `stream` is `stdout`, `stderr` or `log`."""

    seq: int
    at: datetime
    attempt: int
    stream: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Gate(Record):
    """Something that a task waits for, and what would open it."""

    gate: str
    message: str
    since: datetime | None = None
    opens_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation(Record):
    """Why a task does not run."""

    task: str
    status: str
    summary: str
    gates: tuple[Gate, ...]


@dataclass(frozen=True, kw_only=True)
class Relative(Record):
    """A task on the other side of a dependency."""

    id: str
    name: str
    handler: str
    status: str


@dataclass(frozen=True, kw_only=True)
class Dependencies(Record):
    """What a task waits for, and what waits for it: the first 1,000 of each."""

    depends_on: tuple[Relative, ...]
    dependants: tuple[Relative, ...]
    dependants_total: int


@dataclass(frozen=True, kw_only=True)
class BatchCreated(Record):
    """The ids of a batch, in its order."""

    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BulkOperation(Record):
    """A bulk operation that was started. `task_id` is the task that does it, None after a dry run."""

    matched: int
    task_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class BulkResult(Record):
    """What a bulk operation did. `unchanged` were as asked already; `refusals` says why the first of the refused
    tasks were."""

    action: str
    matched: int
    done: int
    unchanged: int = 0
    refused: int = 0
    refusals: tuple[str, ...] = ()
