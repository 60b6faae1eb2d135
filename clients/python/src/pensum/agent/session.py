"""One process's time as an agent: from the registration to the farewell."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .._async.client import AsyncClient
from ..errors import PensumError
from .beats import Beats
from .ledger import Ledger
from .link import Away, Backoff, Link, SessionFenced
from .polls import Polls, complete
from .task import TaskFunction

logger = logging.getLogger("pensum.agent")

# The longest wait of a poll, and the longest time between two heartbeats, in seconds.
_WAIT = 20.0
_BEAT = 1.0
# What is still to be said at the end may take so long, in seconds; functions that were cancelled as well.
_FAREWELL = 5.0
_LAST_WORDS = 2.0


class Session:
    """The work of an agent while it runs here. Of one agent one session holds at a time: the newest."""

    def __init__(
        self,
        client: AsyncClient,
        registration: Mapping[str, Any],
        functions: Mapping[str, TaskFunction[..., Any]],
        grace: float,
        exit_on_drain: bool,
    ) -> None:
        self.id = uuid.uuid4().hex
        self._client = client
        self._registration = registration
        self._grace = grace
        self._exit_on_drain = exit_on_drain
        self._stopping = asyncio.Event()
        self._agent = str(registration["id"])
        lease = float(registration["lease"])
        self._link = Link(client._transport, self._agent, self.id)
        self._ledger = Ledger(functions, int(registration["max_concurrent_tasks"]))
        # An agent that is silent for the time of its lease is offline, so a parked poll is not longer.
        self._polls = Polls(self._link, self._ledger, min(_WAIT, lease / 2), self._register_once)
        self._beats = Beats(self._link, self._ledger, min(_BEAT, lease / 3))

    def stop(self) -> None:
        """Takes nothing more, and ends when what runs has ended or the time for that is over."""
        self._stopping.set()

    async def run(self) -> None:
        """Works until it is stopped. Raises `Unavailable` when the server cannot be reached at the beginning, later
        only what no repeat can mend."""
        await self._client.agents.register(**self._registration)
        logger.info("agent %s is registered at %s", self._agent, self._client.url)
        polls = asyncio.create_task(self._polls.run())
        beats = asyncio.create_task(self._beats.run())
        drained = asyncio.create_task(self._drained())
        stopping = asyncio.create_task(self._stopping.wait())
        workers: list[asyncio.Task[Any]] = [polls, beats, drained, stopping]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
            for worker in (polls, beats):
                if worker.done():
                    worker.result()
            await _end(polls, drained, stopping)
            await self._wind_down(beats)
        finally:
            for run in list(self._ledger.runs):
                self._ledger.runs.pop(run).abandon()
            await _end(*workers)

    async def _drained(self) -> None:
        """Returns when the server wants the agent to take nothing more, nothing runs, and it is to end then."""
        while not (self._exit_on_drain and self._polls.drain and not self._ledger.runs and not self._ledger.results):
            await asyncio.sleep(0.1 if self._exit_on_drain else 3600)
        logger.info("agent %s is drained", self._agent)

    async def _register_once(self) -> None:
        body = json.dumps(dict(self._registration)).encode()
        await self._link.call("register_agent", body, _FAREWELL * 2, of_agent=False)

    async def _wind_down(self, beats: asyncio.Task[None]) -> None:
        ledger = self._ledger
        if ledger.runs:
            logger.info("%s tasks run; they have %g s to end", len(ledger.runs), self._grace)
        await self._report(beats, self._grace)
        if ledger.runs:
            logger.warning("%s tasks have not ended in time and are given back", len(ledger.runs))
        for run in list(ledger.runs.values()):
            run.stop()
        # Asynchronous functions are cancelled, and may clean up.
        await self._report(beats, _LAST_WORDS)
        for run in list(ledger.runs.values()):
            run.give_back()
        await self._report(beats, _FAREWELL)
        if ledger.results:
            logger.error("%s results did not reach the server; those tasks run again", len(ledger.results))
        await self._leave()

    async def _report(self, beats: asyncio.Task[None], seconds: float) -> None:
        """Sends results as they come, until nothing runs and all are sent, or the time is over."""
        ledger, backoff = self._ledger, Backoff()
        deadline = ledger.loop.time() + seconds
        while (ledger.runs or ledger.results) and (left := deadline - ledger.loop.time()) > 0:
            ledger.changed.clear()
            try:
                if ledger.has_unsent:
                    await asyncio.wait_for(complete(self._link, ledger), left)
                    backoff.reset()
                    continue
                await asyncio.wait_for(ledger.changed.wait(), left)
            except asyncio.TimeoutError:
                return
            except Away:
                await asyncio.sleep(min(backoff.next(), left))
            if beats.done():
                # It ends only with an error, such as that another process has taken over.
                beats.result()

    async def _leave(self) -> None:
        try:
            body = json.dumps({"session": self.id}).encode()
            # Where no poll had arrived yet, or another process has taken over, there is nothing to take leave of.
            with suppress(SessionFenced):
                await self._link.call("leave_agent", body, _FAREWELL)
            logger.info("agent %s has left", self._agent)
        except (Away, PensumError) as error:
            logger.warning("agent %s could not say that it leaves: %s", self._agent, error.__cause__ or error)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
