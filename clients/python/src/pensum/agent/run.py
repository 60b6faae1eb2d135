"""One run of a task in this process: started, cancelled, timed out, ended, and what it has to say meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import Invalid
from ..inputs import UNSET
from .context import Context, encoded
from .outbox import Outbox, Saved
from .outcomes import CANCELLED, RELEASED, Cancelled, Outcome, _WithCheckpoint, failed, of_error, retry
from .task import InvalidParameters, TaskFunction

if TYPE_CHECKING:
    from .ledger import Ledger

# What the server takes of one result is 1 MiB. The log in it must not outgrow that, and there is the rest around both.
_LOG_MAX = 64 * 1024
_OUTCOME_MAX = (1 << 20) - _LOG_MAX - 4096
# How long an asynchronous function may take to end after its time is over.
_LAST_WORDS = 5.0


class Run:
    """A run. All but what `Context` calls happens on the event loop."""

    def __init__(self, item: dict[str, Any], function: TaskFunction[..., Any] | None, ledger: Ledger) -> None:
        self.task: dict[str, Any] = item["task"]
        self.execution_id: str = item["execution_id"]
        self.token: str = item["lease_token"]
        self.checkpoint: Any = item.get("checkpoint")
        self.is_async = function is not None and function.is_async
        self.cancelled = False
        self.pausing = False
        self.outbox = Outbox(lambda: ledger.beat_soon(self))
        self._function = function
        self._ledger = ledger
        self._why = ""
        self._context: Context | None = None
        self._work: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._outcome: bytes | None = None
        self._usage: bytes = b""

    def start(self) -> None:
        """Calls the function, in a thread unless it is asynchronous."""
        assert self._function is not None
        function, signature = self._function.__wrapped__, self._function.signature
        try:
            arguments = signature.arguments(self.task.get("parameters"))
        except InvalidParameters as error:
            self.end(failed("invalid_parameters", str(error)))
            return
        positional: tuple[Any, ...] = ()
        if signature.takes_context:
            self._context = Context(self)
            positional = (self._context,)
        timeout = self.task.get("timeout")
        if timeout:
            self._timer = self._ledger.loop.call_later(timeout, self._time_is_over)
        if self.is_async:
            self._work = self._ledger.loop.create_task(self._drive(function, positional, arguments))
        else:
            self._ledger.threads.submit(lambda: self._call(function, positional, arguments))

    async def _drive(
        self, function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]
    ) -> None:
        try:
            result = await function(*positional, **arguments)
        except asyncio.CancelledError as error:
            self._raised(error)
        except BaseException as error:
            self._raised(error)
            if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
                raise
        else:
            self._returned(result)

    def _call(self, function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        cpu = time.thread_time()
        try:
            result = function(*positional, **arguments)
        except BaseException as error:
            self._usage = b',"usage":{"cpu_seconds":%.6f}' % (time.thread_time() - cpu)
            self._ledger.later(self._raised, error)
        else:
            self._usage = b',"usage":{"cpu_seconds":%.6f}' % (time.thread_time() - cpu)
            self._ledger.later(self._returned, result)

    def _returned(self, result: Any) -> None:
        if self._why == "timeout":
            self.end(self._timed_out())
            return
        try:
            self.end_as(encoded({"done": result}, "result", _OUTCOME_MAX))
        except Invalid as error:
            self.end(failed("invalid_result", str(error)))

    def _raised(self, error: BaseException) -> None:
        outcome, lines = of_error(error)
        if self._why == "timeout":
            outcome = self._timed_out()
        elif self._why == "cancel":
            outcome = CANCELLED
        elif self._why == "stop":
            outcome = RELEASED
        elif isinstance(error, _WithCheckpoint):
            try:
                kept = None if error.checkpoint is UNSET else self._whole(error.checkpoint)
            except Invalid as refused:
                self.end(failed("invalid_checkpoint", str(refused)))
                return
            name, fields = next(iter(outcome.items()))
            inner = encoded(fields, name)
            if kept is not None:
                inner = inner[:-1] + (b"," if len(inner) > 2 else b"") + b'"checkpoint":' + kept + b"}"
            self.end_as(b'{"%s":%s}' % (name.encode(), inner))
            return
        else:
            for line in lines:
                self.outbox.log(line, "stderr")
        self.end(outcome)

    def _whole(self, checkpoint: Any) -> bytes:
        context = self._context or Context(self)
        return context._keep_for_next(checkpoint) or b"null"

    def _timed_out(self) -> Outcome:
        return retry("timeout", f"it ran longer than its timeout of {self.task.get('timeout'):g} s")

    def _time_is_over(self) -> None:
        if self._outcome is not None or self._why:
            return
        self._why, self.cancelled = "timeout", True
        if self._work is None:
            self.end(self._timed_out())
        else:
            self._work.cancel()
            self._timer = self._ledger.loop.call_later(_LAST_WORDS, lambda: self.end(self._timed_out()))

    def cancel(self) -> None:
        """Asks the function to stop, because the task is to be cancelled."""
        self._interrupt("cancel")

    def stop(self) -> None:
        """Gives the task back: at once where a thread runs it, else once the function has ended."""
        self._interrupt("stop")
        if self._work is None:
            self.end(RELEASED)

    def give_back(self) -> None:
        """Gives the task back, whether the function has ended or not."""
        self.end(RELEASED)
        self._settle(at_once=True)

    def _interrupt(self, why: str) -> None:
        if self._why or self._outcome is not None:
            return
        self._why, self.cancelled = why, True
        if self._work is not None:
            self._work.cancel()

    def abandon(self) -> None:
        """The lease is lost: what the function does and returns counts no more."""
        self._outcome = b""
        self.cancelled = True
        if self._timer is not None:
            self._timer.cancel()
        if self._work is not None and not self._work.done():
            self._work.cancel()
        self.outbox.refuse(Cancelled("the lease is lost; another attempt runs the task"))

    def end(self, outcome: Outcome) -> None:
        """Notes the end of the run; the first one counts."""
        self.end_as(json.dumps(outcome, ensure_ascii=True, allow_nan=False).encode())

    def end_as(self, outcome: bytes) -> None:
        """The same for an outcome that is JSON already."""
        if self._outcome is not None:
            return
        self._outcome = outcome
        if self._timer is not None:
            self._timer.cancel()
        self._settle()

    def _settle(self, at_once: bool = False) -> None:
        """Hands the result over once no heartbeat carries a part of it and the rest of the log fits beside it."""
        if not self._outcome or (self.outbox.is_under_way and not at_once):
            return
        rest = self.outbox.rest(_LOG_MAX)
        if rest is None and not at_once:
            self._ledger.beat_soon(self)
            return
        item = b'{"execution_id":"%s","lease_token":"%s","outcome":%s%s%s}' % (
            self.execution_id.encode(), self.token.encode(), self._outcome, self._usage, rest or b"",
        )  # fmt: skip
        self._ledger.ended(self, item)
        self.outbox.refuse(Cancelled("the run has ended"))

    def save(self, checkpoint: bytes) -> Saved:
        """Sends a checkpoint with a heartbeat at once; from any thread."""
        saved = Saved()
        if self.is_async:
            self._save(checkpoint, saved)
        else:
            self._ledger.later(self._save, checkpoint, saved)
        return saved

    def _save(self, checkpoint: bytes, saved: Saved) -> None:
        if self._outcome is not None:
            saved.settle(Cancelled("the run has ended"))
            return
        self.outbox.save(checkpoint, saved)

    def carry(self) -> bytes:
        """This run in a heartbeat, with what it has to say."""
        entry = b'{"execution_id":"%s","lease_token":"%s"%s}'
        return entry % (self.execution_id.encode(), self.token.encode(), self.outbox.carry())

    def carried(self, error: Exception | None = None) -> None:
        """The server has what the heartbeat carried, or refuses it."""
        self.outbox.arrived(error)
        self._settle()

    def not_carried(self) -> None:
        """The heartbeat did not arrive."""
        self.outbox.got_lost()
        self._settle()
