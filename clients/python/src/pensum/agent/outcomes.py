"""How a task function may end otherwise than by returning its result: exceptions, and the outcomes they mean."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..inputs import UNSET, Unset
from ..times import Duration, Time, duration_json, time_text

Outcome = Mapping[str, Any]
"""An outcome as the API takes it: an object with one field."""

_TRACEBACK_LINES = 60
# What the server takes of an error's type, in characters.
_TYPE_MAX = 200


class Ending(Exception):
    """The base of the exceptions that say how the task goes on."""

    def outcome(self) -> Outcome:
        """What is reported."""
        raise NotImplementedError


class NonRetryable(Ending):
    """The task has failed, and another attempt would not help. `type` is the error's type, by default the class's
    name, so that subclasses have their own."""

    def __init__(self, message: str, *, type: str | None = None) -> None:
        super().__init__(message)
        self.type = type or self.__class__.__name__

    def outcome(self) -> Outcome:
        return failed(self.type, str(self))


class RetryAfter(Ending):
    """The attempt has failed, and the next one is to start after this time instead of that of the task's policy."""

    def __init__(
        self, after: Duration, message: str = "it asks for another attempt", *, type: str | None = None
    ) -> None:
        super().__init__(message)
        self.after = duration_json(after, "after")
        self.type = type or self.__class__.__name__

    def outcome(self) -> Outcome:
        return {"retry": {**retry(self.type, str(self))["retry"], "after": self.after}}


class Cancelled(Ending):
    """The task stops, as was requested: `Context.check` raises it."""

    def __init__(self, message: str = "the task was asked to stop") -> None:
        super().__init__(message)

    def outcome(self) -> Outcome:
        return {"cancelled": {}}


class _WithCheckpoint(Ending):
    """`checkpoint` is what the next run finds as `Context.checkpoint`; where it is not given, the present one."""

    def __init__(self, message: str, checkpoint: Any) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class Paused(_WithCheckpoint):
    """The task gives up its slot, as `Context.pausing` asked, and goes on when it is resumed."""

    def __init__(self, checkpoint: Any | Unset = UNSET) -> None:
        super().__init__("the task pauses", checkpoint)

    def outcome(self) -> Outcome:
        return {"yielded": {}}


class Again(_WithCheckpoint):
    """The task is to run again after this time. That is no failure, and no new attempt."""

    def __init__(self, after: Duration, checkpoint: Any | Unset = UNSET) -> None:
        super().__init__("the task is to run again", checkpoint)
        self.after = duration_json(after, "after")

    def outcome(self) -> Outcome:
        return {"again": {"after": self.after}}


class Wait(_WithCheckpoint):
    """The task gives up its slot until its `children` have ended, a `signal` came or its `timeout` is over, or a time:
    `until`, which may be a duration. Then the function runs again."""

    def __init__(
        self,
        *,
        children: bool = False,
        signal: str | None = None,
        timeout: Duration | None = None,
        until: Time | timedelta | float | None = None,
        checkpoint: Any | Unset = UNSET,
    ) -> None:
        if [bool(children), signal is not None, until is not None].count(True) != 1:
            raise ValueError("Wait needs one of `children`, `signal` and `until`")
        super().__init__("the task waits", checkpoint)
        self.on: dict[str, Any] = {}
        if children:
            self.on["children"] = True
        if signal is not None:
            self.on["signal"] = signal
        if timeout is not None:
            self.on["timeout"] = duration_json(timeout, "timeout")
        if until is not None:
            is_duration = isinstance(until, (timedelta, float, int))
            self.on["until"] = duration_json(until, "until") if is_duration else time_text(until, "until")

    def outcome(self) -> Outcome:
        return {"wait": self.on}


def readable(text: str) -> str:
    """Text that can be sent: what Python reads of bytes that are none has characters that JSON does not."""
    return text.encode("utf-8", "replace").decode()


def of_error(error: BaseException) -> tuple[Outcome, list[str]]:
    """The outcome of an exception that a task function raised, and the lines for the task's log."""
    if isinstance(error, Ending):
        return error.outcome(), []
    name = type(error).__name__
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    if len(lines) > _TRACEBACK_LINES:
        lines = ["…", *lines[-_TRACEBACK_LINES:]]
    return retry(name, str(error) or name), lines


def failed(kind: str, message: str) -> Outcome:
    """A failure that no other attempt would mend."""
    return {"fail": {"message": readable(message), "type": readable(kind)[:_TYPE_MAX]}}


def retry(kind: str, message: str) -> Outcome:
    """A failure that another attempt may mend."""
    return {"retry": {"message": readable(message), "type": readable(kind)[:_TYPE_MAX]}}


RELEASED: Outcome = {"released": {}}
"""Given back unfinished; that costs no attempt."""
CANCELLED: Outcome = {"cancelled": {}}
