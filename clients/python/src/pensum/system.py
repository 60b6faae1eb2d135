"""Queues, nodes, the intake and the state of the whole system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .models import ErrorInfo, RetryPolicy
from .records import Record


@dataclass(frozen=True, kw_only=True)
class RateLimit(Record):
    """How many tasks start within a time: `starts` within `per`, at most `burst` at once."""

    starts: int
    per: timedelta | None = None
    burst: int | None = None


@dataclass(frozen=True, kw_only=True)
class QueueSettings(Record):
    """What a queue allows, and what its tasks get that do not say otherwise; what is None has its default."""

    name: str | None = None
    max_concurrent: int | None = None
    max_concurrent_per_key: int | None = None
    auto_start: bool | None = None
    persistent: bool | None = None
    rate_limit: RateLimit | None = None
    max_depth: int | None = None
    max_age: timedelta | None = None
    when_full: str | None = None
    priority: str | None = None
    timeout: timedelta | None = None
    max_retries: int | None = None
    retry: RetryPolicy | None = None
    ageing: timedelta | None = None
    fair: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Queue(Record):
    """A queue. `tasks` counts its tasks by status; `running` those that hold a lease."""

    id: str
    name: str
    status: str
    running: int
    tasks: Mapping[str, int]
    settings: QueueSettings
    version: int
    closed: str | None = None
    opens_at: datetime | None = None
    paused_at: datetime | None = None
    put_by: str | None = None
    created_at: datetime | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class QueueStats(Record):
    """How many tasks there are of each status."""

    pending_tasks: int
    ready_tasks: int
    running_tasks: int
    retrying_tasks: int
    paused_tasks: int
    completed_tasks: int
    failed_tasks: int
    cancelled_tasks: int


@dataclass(frozen=True, kw_only=True)
class AllQueueStats(QueueStats):
    """The counts of all queues together, and of each."""

    dead_letters: int
    queues: Mapping[str, QueueStats]


@dataclass(frozen=True, kw_only=True)
class DeadLetterGroup(Record):
    """Dead letters of one handler with one error, where numbers and ids in its message make no difference.

    `newest` holds the ids of at most five of them.
    """

    fingerprint: str
    handler: str
    queues: tuple[str, ...]
    count: int
    first_at: datetime
    last_at: datetime
    newest: tuple[str, ...]
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True)
class DeadLetterGroups(Record):
    """The groups with the most tasks, of the `examined` newest dead letters; `complete` when those are all."""

    items: tuple[DeadLetterGroup, ...]
    total: int
    examined: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Node(Record):
    """A node that works on the store. `status` is `running`, or `lost` once it has fallen silent."""

    id: str
    name: str
    status: str
    version: str
    started_at: datetime
    seen_at: datetime
    slots: int
    running: int
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class IntakeRow(Record):
    """A task that a program left in the store's intake and that is not enqueued."""

    id: int
    status: str
    bytes: int
    actor: str
    task: Any = None
    created_at: datetime | None = None
    rejected_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class IntakeRetried(Record):
    """A row of the intake that waits again."""

    id: int
    status: str


@dataclass(frozen=True, kw_only=True)
class Health(Record):
    """How a probe finds the server."""

    status: str
    uptime_seconds: float


@dataclass(frozen=True, kw_only=True)
class PerformanceMetrics(Record):
    """How well the system works: `overall_health`, the mean of the agents' health scores, and the rates are 0 to 1."""

    overall_health: float
    success_rate: float
    tasks_per_minute: float
    average_duration_seconds: float
    slot_utilization: float


@dataclass(frozen=True, kw_only=True)
class AgentStatus(Record):
    """An agent at a glance: `health_score` is the share of its newest runs that did not fail, 0 to 1."""

    name: str
    status: str
    active_tasks: int
    health_score: float


@dataclass(frozen=True, kw_only=True)
class PersistenceStats(Record):
    """What the store holds."""

    active: int
    completed: int
    errored: int
    quarantined: int


@dataclass(frozen=True, kw_only=True)
class SystemStatus(Record):
    """How the node and its store are."""

    status: str
    version: str
    uptime_seconds: float
    total_tasks: int
    task_counts: Mapping[str, int]
    active_tasks: int
    total_executions: int
    active_queues: int
    registered_agents: int
    agent_status: Mapping[str, AgentStatus]
    performance_metrics: PerformanceMetrics
    persistence_stats: PersistenceStats
    nodes: tuple[Node, ...]
