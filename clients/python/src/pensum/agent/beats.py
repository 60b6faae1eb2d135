"""Heartbeats: leases kept; progress, logs and checkpoints out; requests to cancel and to pause in."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable

from ..errors import Invalid, NotFound
from .ledger import Ledger
from .link import Away, Backoff, Link
from .run import Run

logger = logging.getLogger("pensum.agent")

_TIMEOUT = 10.0
_BODY_BYTES = 8 << 20
_MOST_RUNS = 10_000


class Beats:
    """A heartbeat for all runs every `interval` seconds, and at once for those with something urgent."""

    def __init__(self, link: Link, ledger: Ledger, interval: float) -> None:
        self._link = link
        self._ledger = ledger
        self._interval = interval
        self._backoff = Backoff()

    async def run(self) -> None:
        """Sends heartbeats until it is cancelled; raises what no repeat can mend."""
        ledger, loop = self._ledger, self._ledger.loop
        regular_at = loop.time() + self._interval
        idle = True
        while True:
            timer = loop.call_at(regular_at, ledger.beat.set) if ledger.runs else None
            await ledger.beat.wait()
            ledger.beat.clear()
            if timer is not None:
                timer.cancel()
            if not ledger.runs:
                idle = True
                continue
            if idle:
                # What has just begun needs no heartbeat yet.
                idle, regular_at = False, loop.time() + self._interval
            runs: Iterable[Run] = list(ledger.urgent.values())
            if loop.time() >= regular_at:
                runs, regular_at = list(ledger.runs.values()), loop.time() + self._interval
            ledger.urgent.clear()
            try:
                await self._send(runs)
                self._backoff.reset()
            except Away:
                await asyncio.sleep(min(self._backoff.next(), self._interval))
                ledger.beat.set()

    async def _send(self, runs: Iterable[Run]) -> None:
        chosen: list[Run] = []
        entries: list[bytes] = []
        size = 0
        for run in runs:
            if self._ledger.runs.get(run.execution_id) is not run:
                continue
            entry = run.carry()
            chosen.append(run)
            entries.append(entry)
            size += len(entry)
            if size > _BODY_BYTES or len(chosen) == _MOST_RUNS:
                await self._beat(chosen, entries)
                chosen, entries, size = [], [], 0
        if chosen:
            await self._beat(chosen, entries)

    async def _beat(self, runs: list[Run], entries: list[bytes]) -> None:
        session = json.dumps(self._link.session).encode()
        body = b'{"session":' + session + b',"executions":[' + b",".join(entries) + b"]}"
        try:
            answer = await self._link.call("heartbeat_agent", body, _TIMEOUT)
        except BaseException as error:
            for run in runs:
                run.not_carried()
            if isinstance(error, NotFound):
                # The next poll registers the agent again; if all slots are taken, that is when the first is free.
                raise Away from None
            if isinstance(error, Invalid):
                await self._refused(runs, error)
                return
            raise
        lost = set(answer.get("lost", ()))
        for execution in lost:
            self._ledger.lose(execution, "has lost its lease")
        for run in runs:
            if run.execution_id not in lost:
                run.carried()
        for execution in answer.get("cancel", ()):
            if execution in self._ledger.runs:
                self._ledger.runs[execution].cancel()
        for execution in answer.get("pause", ()):
            if execution in self._ledger.runs:
                self._ledger.runs[execution].pausing = True

    async def _refused(self, runs: list[Run], error: Invalid) -> None:
        """Something of a run is not as the server wants it. That must not cost the others their leases."""
        if len(runs) > 1:
            for run in runs:
                await self._beat([run], [run.carry()])
            return
        run = runs[0]
        logger.error("what %s said was refused and is dropped: %s", run.execution_id, error)
        run.carry()
        run.carried(error)
