"""Agents: who they are, and what is said between them and the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .models import Resources, Task
from .records import Record


@dataclass(frozen=True, kw_only=True)
class AgentInfo(Record):
    """A registered agent. `status` is `idle`, `busy`, or `offline` once it was silent for the time of its lease."""

    id: str
    name: str
    capabilities: tuple[str, ...]
    max_concurrent_tasks: int
    lease: timedelta
    status: str
    draining: bool
    active_tasks: int
    version: int
    agent_type: str | None = None
    agent_version: str | None = None
    resources: Resources | None = None
    labels: Mapping[str, str] | None = None
    draining_at: datetime | None = None
    seen_at: datetime | None = None
    created_at: datetime | None = None
    changed_at: datetime | None = None
    created_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery(Record):
    """A task that an agent is to run. Its result, and every heartbeat until then, names `lease_token`."""

    task: Task
    execution_id: str
    lease_token: str
    lease_expires_at: datetime
    checkpoint: Any = None


@dataclass(frozen=True, kw_only=True)
class Acceptance(Record):
    """What became of a result: `accepted`, `repeat` of one that was accepted before, `lease_lost` or `invalid`."""

    execution_id: str
    status: str
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Polled(Record):
    """The answer to a poll. With `drain` the agent is to finish what it runs, and gets nothing more."""

    tasks: tuple[Delivery, ...]
    accepted: tuple[Acceptance, ...]
    drain: bool


@dataclass(frozen=True, kw_only=True)
class Heard(Record):
    """The answer to a heartbeat: the executions to cancel, those to pause, and those whose lease is lost."""

    cancel: tuple[str, ...]
    pause: tuple[str, ...]
    lost: tuple[str, ...]
    drain: bool
    lease_expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Completed(Record):
    """What became of each of the results, in their order."""

    results: tuple[Acceptance, ...]
