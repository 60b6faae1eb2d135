# Made from _async/watch.py by tools/make_sync.py: change that one.
"""Watching a task until it has ended: its end, and its log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Callable, Iterable
from datetime import timedelta

from ..errors import PensumError, TaskFailed, Unavailable, WaitTimeout
from ..inputs import TaskRef, ident
from ..models import LogLine, Task
from ..times import seconds
from .bridge import sleep
from .transport import Transport

# How often a task is looked at, in seconds: often at first, then less and less.
_FIRST_LOOK = 0.01
_LAST_LOOK = 0.5
_SLOWER = 1.4
# How long a server may be away, in seconds, before who waits for it is told.
OUTAGE = 30.0


class Watch:
    """The part of `tasks` that waits."""

    _transport: Transport

    def wait(
        self,
        task: TaskRef,
        timeout: timedelta | float | None = None,
        *,
        outage: timedelta | float = OUTAGE,
        on_change: Callable[[Task], object] | None = None,
    ) -> Task:
        """Waits until a task has ended, well or not, and returns it.

        Raises `WaitTimeout` after `timeout`, and `Unavailable` when the server gave no answer for `outage`; a shorter
        absence, such as a restart, is waited out. `on_change` is called with each new version of the task.
        """
        task_id = ident(task)
        most = None if timeout is None else seconds(timeout, "timeout")
        patience = seconds(outage, "outage")
        began = heard = time.monotonic()
        look = _FIRST_LOOK
        seen: Task | None = None
        while True:
            try:
                left = None if most is None else most - (time.monotonic() - began)
                answer = self._transport.call(
                    "get_task", path={"id": task_id}, retries=0, timeout=_share(self._transport.timeout, left)
                )
            except Unavailable:
                # The end of the time to wait is told as such below, whatever the server does then.
                late = most is not None and time.monotonic() - began >= most
                if time.monotonic() - heard >= patience and not late:
                    raise
            else:
                heard = time.monotonic()
                latest = Task.parse(answer)
                if on_change is not None and (seen is None or latest.version != seen.version):
                    on_change(latest)
                seen = latest
                if seen.ended:
                    return seen
            passed = time.monotonic() - began
            if most is not None and passed >= most:
                raise WaitTimeout(_too_late(task_id, most, seen), seen)
            sleep(look if most is None else max(min(look, most - passed), 0.0))
            look = min(look * _SLOWER, _LAST_LOOK)

    def wait_all(
        self, tasks: Iterable[TaskRef], timeout: timedelta | float | None = None, *, outage: timedelta | float = OUTAGE
    ) -> tuple[Task, ...]:
        """Waits until all of the tasks have ended, well or not, and returns them in order. `timeout` is for all."""
        most = None if timeout is None else seconds(timeout, "timeout")
        began = time.monotonic()
        ended = []
        for task in tasks:
            left = None if most is None else max(most - (time.monotonic() - began), 0.0)
            ended.append(self.wait(task, left, outage=outage))
        return tuple(ended)

    def logs(
        self, task: TaskRef, *, after: int | None = None, attempt: int | None = None, limit: int | None = None
    ) -> Iterator[LogLine]:
        """The log of a task so far: all of it, what comes `after` the `seq` of a line, or that of one attempt."""
        query = {"after": after, "attempt": attempt}
        return self._transport.pages("read_logs", LogLine.parse, limit, query, path={"id": ident(task)})

    def follow(
        self,
        task: TaskRef,
        *,
        after: int | None = None,
        attempt: int | None = None,
        outage: timedelta | float = OUTAGE,
    ) -> Iterator[LogLine]:
        """The log of a task as it grows, until the task has ended.

        A broken stream goes on after the last line; `Unavailable` is raised when that fails for `outage`.
        """
        path = {"id": ident(task)}
        patience = seconds(outage, "outage")
        heard = time.monotonic()
        look = _FIRST_LOOK
        while True:
            query = {"follow": True, "after": after, "attempt": attempt}
            try:
                with self._transport.stream("read_logs", path=path, query=query) as lines:
                    event = ""
                    for line in lines:
                        heard, look = time.monotonic(), _FIRST_LOOK
                        name, _, value = line.partition(":")
                        if name == "event":
                            event = value.strip()
                        if name != "data":
                            continue
                        if event == "end":
                            return
                        if event == "log":
                            entry = LogLine.parse(_json(value))
                            after = entry.seq
                            yield entry
            except Unavailable:
                if time.monotonic() - heard >= patience:
                    raise
            else:
                if time.monotonic() - heard >= patience:
                    raise Unavailable(f"the log of task {path['id']} breaks off again and again; look at the server")
            sleep(look)
            look = min(look * _SLOWER, _LAST_LOOK)

    def result(self, task: TaskRef, timeout: timedelta | float | None = None) -> object:
        """Waits for the end of a task and returns its result; raises `TaskFailed` when it did not complete."""
        return completed(self.wait(task, timeout)).result


def completed(task: Task) -> Task:
    """The task, if it has completed; `TaskFailed` tells why it has not."""
    if not task.completed:
        reason = f": {task.error.type}: {task.error.message}" if task.error else ""
        raise TaskFailed(f"task {task.id} ({task.name}) ended as {task.status}{reason}", task)
    return task


def _share(timeout: float, left: float | None) -> float:
    return timeout if left is None else min(timeout, max(left, 0.05))


def _too_late(task_id: str, most: float, seen: Task | None) -> str:
    state = "the server gave no answer" if seen is None else f"it is {seen.status}"
    return f"task {task_id} has not ended within {most:g} s, {state}; wait longer, ask why with `explain`, or cancel it"


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise PensumError(f"the server sent a line of a log that is no JSON: {text[:200]!r}") from None
