"""Requests of a session to its server, and what it says of outages: a line at the beginning and one at the end."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from .._async.transport import AsyncTransport
from ..errors import Conflict, PensumError, Unavailable

logger = logging.getLogger("pensum.agent")

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class Away(Exception):
    """The server cannot be reached now, or not do what it should."""


class SessionFenced(Conflict):
    """Another process runs under this agent's id and has taken over; what this one ran has been given to others."""


class Backoff:
    """Pauses between tries in seconds: each twice the one before, up to 2 s, less a random part."""

    def __init__(self) -> None:
        self._failures = 0

    @property
    def is_on(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def reset(self) -> None:
        """The next pause is the first again."""
        self._failures = 0

    def next(self) -> float:
        """The next pause."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * float(2 ** min(self._failures, 10)))
        self._failures += 1
        return longest * random.uniform(0.5, 1.0)


class Link:
    """The server as one session of an agent sees it."""

    def __init__(self, transport: AsyncTransport, agent: str, session: str) -> None:
        self.agent = agent
        self.session = session
        self._transport = transport
        self._away_since: float | None = None

    async def call(self, operation: str, body: bytes | None, timeout: float, *, of_agent: bool = True) -> Any:
        """One request, once. Raises `Away` where another try may help, `SessionFenced`, or another `PensumError`."""
        path = {"id": self.agent} if of_agent else None
        try:
            answer = await self._transport.call(operation, path=path, content=body, timeout=timeout, retries=0)
        except Conflict as error:
            if not str(error.problem.get("type", "")).endswith("session_fenced"):
                raise
            raise SessionFenced(
                f"agent `{self.agent}` was started elsewhere, so this process gives way: {error}; every process needs "
                f"an id of its own",
                status=error.status,
                problem=error.problem,
            ) from None
        except PensumError as error:
            # An answer of success that is none of Pensum comes from something between.
            if isinstance(error, Unavailable) or error.status is None or not 400 <= error.status < 500:
                self._lost(error)
                raise Away from error
            raise
        self._back()
        return answer

    def _lost(self, error: PensumError) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.warning("the server is away, trying until it is back: %s", error)

    def _back(self) -> None:
        if self._away_since is not None:
            logger.warning("the server is back after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None
