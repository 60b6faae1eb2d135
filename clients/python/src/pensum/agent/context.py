"""What a running task function knows of its task, and tells the server."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ..errors import invalid
from ..inputs import UNSET
from ..models import Task
from .hints import plain_json
from .outcomes import Cancelled, readable

if TYPE_CHECKING:
    from .outbox import Saved
    from .run import Run

T = TypeVar("T")

CHECKPOINT_MAX = 1 << 20
"""The largest checkpoint in bytes of JSON."""
_STREAMS = ("log", "stdout", "stderr")
_STEPS = "$steps"
_SAVED = "$saved"


class Context:
    """One run of a task. What it says goes to the server with the next heartbeat, within a second; a step and a saved
    checkpoint at once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._task: Task | None = None
        self._steps, self._saved = _parts(run.checkpoint)
        self._lock = threading.Lock()

    @property
    def task(self) -> Task:
        """The task, as it was when it was given to this agent."""
        if self._task is None:
            self._task = Task.parse(self._run.task)
        return self._task

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self._run.task["id"])

    @property
    def execution_id(self) -> str:
        """The id of this attempt."""
        return self._run.execution_id

    @property
    def attempt(self) -> int:
        """The attempt's number, from 1."""
        return int(self._run.task["attempt"])

    @property
    def parameters(self) -> Any:
        """The parameters of the task, as they were sent."""
        return self._run.task.get("parameters")

    @property
    def checkpoint(self) -> Any:
        """What was saved last, in this attempt or one before it; None where nothing was."""
        return self._saved

    @property
    def cancelled(self) -> bool:
        """Whether to stop: it was cancelled, its time is over, or its lease is lost."""
        return self._run.cancelled

    @property
    def pausing(self) -> bool:
        """Whether the task was asked to pause; to do so, raise `Paused`."""
        return self._run.pausing

    def check(self) -> None:
        """Raises `Cancelled` when the task is to stop."""
        if self._run.cancelled:
            raise Cancelled()

    def progress(self, percent: float, message: str | None = None) -> None:
        """How far the task is, 0 to 100."""
        if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 0 <= percent <= 100:
            raise invalid("percent", f"must be a number from 0 to 100, not {percent!r}")
        said: dict[str, Any] = {"percent": percent}
        if message is not None:
            said["message"] = readable(str(message))
        self._run.outbox.progress = said

    def log(self, message: str, stream: str = "log") -> None:
        """A line for the task's log; `stream` is `log`, `stdout` or `stderr`."""
        if stream not in _STREAMS:
            raise invalid("stream", f"must be one of {', '.join(_STREAMS)}, not {stream!r}")
        self._run.outbox.log(str(message), stream)

    def save(self, checkpoint: Any) -> Awaitable[None]:
        """Keeps a checkpoint, at most 1 MiB of JSON, for attempts that come after this one.

        In a synchronous function it returns once the server has it; in an asynchronous one, to be awaited for that.
        """
        with self._lock:
            kept = encoded(_whole(self._steps, checkpoint), "checkpoint")
            self._saved = checkpoint
            sent = self._run.save(kept)
        return self._finish(sent)

    @overload
    def step(
        self, name: str, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def step(self, name: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T: ...
    def step(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a function that is called once per task, in whatever attempt: it is kept under this name, and
        the step is done once the server has it. Its result must be JSON, and comes back as that.

        In an asynchronous function a step is an asynchronous function, and is awaited; for one that blocks,
        `await ctx.step(name, asyncio.to_thread, function, …)`.
        """
        if self._run.is_async:
            return self._async_step(name, function, args, kwargs)
        if name in self._steps:
            return self._steps[name]
        self.check()
        made = function(*args, **kwargs)
        if inspect.iscoroutine(made):
            made.close()
            raise TypeError(f"step {name}: an asynchronous function needs a task function that is asynchronous")
        made, sent = self._keep(name, made)
        self._finish(sent)
        return made

    async def _async_step(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name in self._steps:
            return self._steps[name]
        self.check()
        awaited = function(*args, **kwargs)
        if not inspect.isawaitable(awaited):
            raise TypeError(
                f"step {name}: in an asynchronous task function a step is asynchronous too; for one that blocks write "
                f"`await ctx.step({name!r}, asyncio.to_thread, …)`"
            )
        made, sent = self._keep(name, await awaited)
        await sent
        return made

    def _keep(self, name: str, made: Any) -> tuple[Any, Saved]:
        with self._lock:
            # What the next attempt will find is what this one goes on with.
            made = json.loads(encoded(made, f"step {name}"))
            steps = {**self._steps, name: made}
            kept = encoded(_whole(steps, self._saved), "checkpoint")
            self._steps = steps
            return made, self._run.save(kept)

    def _finish(self, sent: Saved) -> Awaitable[None]:
        if not self._run.is_async:
            sent.future.result()
        return sent

    def _keep_for_next(self, checkpoint: Any) -> bytes | None:
        """The checkpoint that goes with an outcome; None keeps the present one."""
        return None if checkpoint is UNSET else encoded(_whole(self._steps, checkpoint), "checkpoint")


def _parts(checkpoint: Any) -> tuple[dict[str, Any], Any]:
    """The results of steps, and what the function saved itself."""
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get(_STEPS), dict):
        return dict(checkpoint[_STEPS]), checkpoint.get(_SAVED)
    return {}, checkpoint


def _whole(steps: dict[str, Any], saved: Any) -> Any:
    if not steps and not (isinstance(saved, dict) and _STEPS in saved):
        return saved
    return {_STEPS: steps, _SAVED: saved}


def encoded(value: Any, path: str, most: int = CHECKPOINT_MAX) -> bytes:
    """A value as JSON. Raises `Invalid` where it has none, or too much."""
    try:
        text = json.dumps(value, default=plain_json, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        found = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(path, f"cannot be written as JSON: {error}") from None
    if len(found) > most:
        raise invalid(path, f"has {len(found):,} bytes as JSON; at most {most:,} are kept")
    return found
