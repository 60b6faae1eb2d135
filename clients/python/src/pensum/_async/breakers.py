"""Circuit breakers: what fails again and again is left alone for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ..breakers import Breaker, BreakerSettings
from ..inputs import given, object_json
from ..times import Duration
from .transport import AsyncTransport


class AsyncBreakers:
    """Circuit breakers."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> AsyncIterator[Breaker]:
        """The breakers, by id."""
        return self._transport.pages("list_breakers", Breaker.parse, limit, {})

    async def get(self, name: str) -> Breaker:
        """Reads a breaker."""
        return Breaker.parse(await self._transport.call("get_breaker", path={"name": name}))

    async def put(
        self,
        name: str,
        settings: BreakerSettings | Mapping[str, Any] | None = None,
        *,
        handlers: Sequence[str] | None = None,
        agents: Sequence[str] | None = None,
        failures: int | None = None,
        failure_rate: float | None = None,
        calls_min: int | None = None,
        window: Duration | None = None,
        open_for: Duration | None = None,
        probes: int | None = None,
        if_match: int | None = None,
    ) -> Breaker:
        """Makes a breaker, or gives it just these settings; what is not given has its default.

        `settings` may be those of a breaker that was read, and the other arguments change single ones of them. With
        `if_match` only at that `version` of the breaker.
        """
        body = {} if settings is None else object_json(settings, "settings")
        body |= given(
            handlers=handlers, agents=agents, failures=failures, failure_rate=failure_rate, calls_min=calls_min,
            window=window, open_for=open_for, probes=probes,
        )  # fmt: skip
        answer = await self._transport.call("put_breaker", path={"name": name}, body=body, if_match=if_match)
        return Breaker.parse(answer)

    async def delete(self, name: str) -> None:
        """Removes a breaker; what it held up starts."""
        await self._transport.call("delete_breaker", path={"name": name})

    async def reset(self, name: str, *, idempotency_key: str | None = None) -> Breaker:
        """Closes a breaker, and forgets what it has seen."""
        return await self._command("reset_breaker", name, idempotency_key)

    async def trip(self, name: str, *, idempotency_key: str | None = None) -> Breaker:
        """Opens a breaker now; after its time it lets somebody try."""
        return await self._command("trip_breaker", name, idempotency_key)

    async def _command(self, operation: str, name: str, idempotency_key: str | None) -> Breaker:
        answer = await self._transport.call(operation, path={"name": name}, idempotency_key=idempotency_key)
        return Breaker.parse(answer)
