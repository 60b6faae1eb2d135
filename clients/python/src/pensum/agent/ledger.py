"""What a session holds: the runs, and the results that the server has not accepted yet."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .outcomes import failed, retry
from .run import Run
from .task import TaskFunction
from .threads import Threads

logger = logging.getLogger("pensum.agent")

# Results that come within this time, in seconds, share a poll: it bounds polls to 200 a second.
_LINGER = 0.005
_BATCH_BYTES = 8 << 20
_BATCH_RESULTS = 1000

Batch = dict[str, str]
"""Results that are being sent: their lease tokens by execution."""


class Ledger:
    """Runs by execution, results by lease token. Everything but `later` happens on the event loop."""

    def __init__(self, functions: Mapping[str, TaskFunction[..., Any]], max_concurrent: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.threads = Threads("pensum-task")
        self.max_concurrent = max_concurrent
        self.runs: dict[str, Run] = {}
        self.results: dict[str, tuple[str, bytes]] = {}
        self.urgent: dict[str, Run] = {}
        self.changed = asyncio.Event()
        """Set when a result is there or a run is gone."""
        self.beat = asyncio.Event()
        """Set when a heartbeat should not wait for its time."""
        self.hold_until = 0.0
        """While something runs, no poll is sent before this time of the loop."""
        self._functions = functions
        self._sending: set[str] = set()
        # Tokens of runs that have ended: a late answer may bring them once more.
        self._over: dict[str, None] = {}

    @property
    def free(self) -> int:
        """How many more runs there may be."""
        return self.max_concurrent - len(self.runs)

    def later(self, call: Callable[..., None], *arguments: Any) -> None:
        """Calls something on the event loop, from a thread; nothing when that has ended."""
        try:
            self.loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The agent is gone, and so is everybody who would want to know.
            pass

    def deliver(self, items: list[dict[str, Any]]) -> int:
        """Starts what the server has given and is not here yet; answers how many that were."""
        started = 0
        for item in items:
            token, execution = item["lease_token"], item["execution_id"]
            present = self.runs.get(execution)
            if token in self._over or (present is not None and present.token == token):
                continue
            if present is not None:
                # The server has taken it away and given it again, so what runs here is not it any more.
                self.lose(execution, "was given to this agent once more")
            started += 1
            self._start(item)
        if started:
            self.hold_until = self.loop.time() + _LINGER
            self.beat.set()
        return started

    def _start(self, item: dict[str, Any]) -> None:
        handler = item["task"]["handler"]
        function = self._functions.get(handler)
        run = Run(item, function, self)
        self.runs[run.execution_id] = run
        if function is not None:
            run.start()
            return
        known = ", ".join(sorted(self._functions))
        message = (
            f"this agent has no function `{handler}`, only {known}; have the task require a capability that only "
            f"agents with that function have"
        )
        run.end(retry("unknown_handler", message))

    def ended(self, run: Run, item: bytes) -> None:
        """A run has ended, and this is its result."""
        if self.runs.get(run.execution_id) is run:
            del self.runs[run.execution_id]
        self.urgent.pop(run.execution_id, None)
        if not self.has_unsent:
            self.hold_until = self.loop.time() + _LINGER
        self.results[run.token] = (run.execution_id, item)
        self._remember(run.token)
        self.changed.set()

    def lose(self, execution: str, why: str) -> None:
        """The lease of a run is lost: it is abandoned, and its result counts no more."""
        run = self.runs.pop(execution, None)
        if run is not None:
            logger.warning("%s %s; its run here is abandoned", execution, why)
            self.urgent.pop(execution, None)
            run.abandon()
            self._remember(run.token)
            self.changed.set()

    def _remember(self, token: str) -> None:
        self._over[token] = None
        # A late answer is no older than one poll.
        if len(self._over) > 1000 + 4 * self.max_concurrent:
            del self._over[next(iter(self._over))]

    def beat_soon(self, run: Run) -> None:
        """A run has something to say that should not wait."""
        self.urgent[run.execution_id] = run
        self.beat.set()

    @property
    def has_unsent(self) -> bool:
        """Whether there are results that no request carries."""
        return len(self.results) > len(self._sending)

    def batch(self) -> tuple[Batch, bytes]:
        """Results to send: their tokens by execution, and the JSON list of them."""
        chosen: Batch = {}
        items: list[bytes] = []
        size = 0
        for token, (execution, item) in self.results.items():
            # The server answers by execution, so each is there once.
            if token in self._sending or execution in chosen:
                continue
            size += len(item)
            if items and (size > _BATCH_BYTES or len(items) == _BATCH_RESULTS):
                break
            chosen[execution] = token
            items.append(item)
        self._sending.update(chosen.values())
        return chosen, b"[" + b",".join(items) + b"]"

    def unsent(self, batch: Batch) -> None:
        """A request did not arrive, or may not have: its results go with the next."""
        self._sending.difference_update(batch.values())

    def have(self) -> list[str]:
        """The executions that need not be delivered again."""
        sending = [self.results[token][0] for token in self._sending if token in self.results]
        return [*self.runs, *sending]

    def settle(self, batch: Batch, answers: list[dict[str, Any]]) -> None:
        """What the server says of the results of a request."""
        self.unsent(batch)
        for answer in answers:
            token = batch.get(answer["execution_id"])
            if token is None or token not in self.results:
                continue
            status = answer["status"]
            if status == "invalid":
                self.refuse(token, str(answer.get("message")))
                continue
            execution, _ = self.results.pop(token)
            if status == "lease_lost":
                why = answer.get("message") or "another attempt runs the task"
                logger.warning("%s ended here, but its lease was lost: %s", execution, why)
        self.changed.set()

    def refuse(self, token: str, message: str) -> None:
        """The server takes no such result: the task has failed with that as its error, and if not even so, its lease
        runs out."""
        execution, item = self.results.pop(token)
        logger.error("the result of %s was refused: %s", execution, message)
        if b'"type":"invalid_result"' not in item:
            outcome = json.dumps(failed("invalid_result", message)).encode()
            again = b'{"execution_id":"%s","lease_token":"%s","outcome":%s}'
            self.results[token] = (execution, again % (execution.encode(), token.encode(), outcome))
