"""Circuit breakers and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from .records import Record


@dataclass(frozen=True, kw_only=True)
class BreakerSettings(Record):
    """What a breaker covers, and when it opens and closes; what is None has its default."""

    handlers: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    failures: int | None = None
    failure_rate: float | None = None
    calls_min: int | None = None
    window: timedelta | None = None
    open_for: timedelta | None = None
    probes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Breaker(Record):
    """A circuit breaker. `state` is `closed`, `open` or `half_open`, and `because` says why it is not closed."""

    id: str
    state: str
    probing: int
    succeeded: int
    failures: int
    calls: int
    settings: BreakerSettings
    put_by: str
    created_at: datetime
    changed_at: datetime
    version: int
    because: str | None = None
    opened_at: datetime | None = None
    tries_at: datetime | None = None
