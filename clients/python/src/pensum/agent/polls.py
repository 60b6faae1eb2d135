"""Polling: results out, tasks in."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import Invalid, NotFound
from .ledger import Batch, Ledger
from .link import Away, Backoff, Link

logger = logging.getLogger("pensum.agent")

# How long the answer may take beyond the wait that was asked for.
_MARGIN = 15.0
# A poll that has no answer after this time waits for a task, and results do not wait with it.
_PARKED = 0.02
# An empty answer that came faster than this is none that waited; the next poll then waits in its stead.
_TOO_FAST = 0.05
_REST = 0.5


class Polls:
    """One poll is at the server whenever there is a free slot. Results ride on the next one; while one waits for a
    task, they go by themselves."""

    def __init__(self, link: Link, ledger: Ledger, wait: float, register: Callable[[], Awaitable[object]]) -> None:
        self.drain = False
        """Whether the server wants this agent to take nothing more."""
        self._link = link
        self._ledger = ledger
        self._wait = wait
        self._register = register
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._sent_at = 0.0
        self._poll_task: asyncio.Task[None] | None = None
        self._report_task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Polls until it is cancelled; raises what no repeat can mend."""
        changed, loop = self._ledger.changed, self._ledger.loop
        try:
            while self._failure is None:
                changed.clear()
                delay = self._step()
                timer = None if delay is None else loop.call_later(delay, changed.set)
                await changed.wait()
                if timer is not None:
                    timer.cancel()
            raise self._failure
        finally:
            under_way = [one for one in (self._poll_task, self._report_task) if one is not None]
            for one in under_way:
                one.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _step(self) -> float | None:
        """Sends a poll or a report, where it is time for one; else answers in how many seconds to look again, None for
        when something has changed."""
        ledger, now = self._ledger, self._ledger.loop.time()
        # Tasks and results come in bursts. While something runs there may be more of them in a moment.
        due = max(self._retry_at, ledger.hold_until if ledger.runs else 0.0)
        if self._poll_task is not None:
            if not ledger.has_unsent or self._report_task is not None:
                return None
            due = max(due, self._sent_at + _PARKED)
        elif not ledger.has_unsent and ledger.free <= 0:
            return None
        if due > now:
            return due - now
        if self._poll_task is not None:
            self._report_task = ledger.loop.create_task(self._report())
            return None
        have = ledger.have()
        batch, results = ledger.batch()
        self._sent_at = now
        self._poll_task = ledger.loop.create_task(self._poll(batch, results, have))
        return None

    async def _report(self) -> None:
        try:
            await complete(self._link, self._ledger)
        except Away:
            self._retry_at = self._ledger.loop.time() + self._backoff.next()
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            self._report_task = None
            self._ledger.changed.set()

    async def _poll(self, batch: Batch, results: bytes, have: list[str]) -> None:
        ledger, began = self._ledger, self._ledger.loop.time()
        # After a failure the first answer is to come at once: that it comes is the news.
        wait = 0.0 if self._backoff.is_on else self._wait
        head = {"session": self._link.session, "max": min(max(ledger.free, 1), 1000),
                "wait_ms": int(wait * 1000), "have": have}  # fmt: skip
        body = json.dumps(head).encode()[:-1] + b',"results":' + results + b"}"
        arrived = False
        try:
            answer = await self._link.call("poll_agent", body, wait + _MARGIN)
            arrived = True
            ledger.settle(batch, answer["accepted"])
            self._take(answer, wait == 0 or bool(batch), ledger.loop.time() - began)
        except Away:
            self._retry_at = ledger.loop.time() + self._backoff.next()
        except NotFound:
            await self._unknown()
        except Invalid as error:
            if batch:
                ledger.unsent(batch)
                await send_singly(self._link, ledger, batch)
            else:
                self._failure = error
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            if not arrived:
                ledger.unsent(batch)
            self._poll_task = None
            ledger.changed.set()

    def _take(self, answer: dict[str, Any], may_be_empty: bool, took: float) -> None:
        self._backoff.reset()
        self.drain = bool(answer.get("drain"))
        started = self._ledger.deliver(answer["tasks"])
        if not started and not may_be_empty and took < _TOO_FAST:
            self._retry_at = self._ledger.loop.time() + _REST

    async def _unknown(self) -> None:
        """The server does not know the agent any more: it has another store, or somebody removed it."""
        logger.warning("the server does not know agent `%s`; it is registered again", self._link.agent)
        try:
            await self._register()
        except Away:
            pass
        self._retry_at = self._ledger.loop.time() + self._backoff.next()


async def complete(link: Link, ledger: Ledger) -> None:
    """Sends results without asking for tasks. Raises `Away`."""
    batch, results = ledger.batch()
    try:
        answer = await link.call("complete_executions", b'{"results":' + results + b"}", _MARGIN, of_agent=False)
    except Invalid:
        ledger.unsent(batch)
        await send_singly(link, ledger, batch)
        return
    finally:
        ledger.unsent(batch)
    ledger.settle(batch, answer["results"])


async def send_singly(link: Link, ledger: Ledger, batch: Batch) -> None:
    """Sends results one by one, because one of them made the server refuse all."""
    for execution, token in batch.items():
        if token not in ledger.results:
            continue
        body = b'{"results":[' + ledger.results[token][1] + b"]}"
        try:
            answer = await link.call("complete_executions", body, _MARGIN, of_agent=False)
            ledger.settle({execution: token}, answer["results"])
        except Invalid as error:
            ledger.refuse(token, str(error))
        except Away:
            return
