"""What can go wrong, as exceptions whose messages say what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .models import Task


class Problem(NamedTuple):
    """One wrong value: where it stands, and what is wrong with it."""

    path: str
    message: str


class PensumError(Exception):
    """The base of all errors of this package, and the class of those that fit no other.

    `status` is the HTTP status of the answer, None where there was none; `problem` is the answer's problem details
    (RFC 9457), empty where it had none.
    """

    def __init__(self, message: str, *, status: int | None = None, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem: Mapping[str, Any] = problem or {}


class NotFound(PensumError):
    """There is no such task, queue, execution, row or route (404)."""


class Conflict(PensumError):
    """The state of the task or queue does not allow it, or a key is taken (409)."""


class VersionMismatch(Conflict):
    """The task or queue is not at the version of `if_match` (412): read it again and decide anew."""


class QueueFull(PensumError):
    """The queue takes no more at this moment, and nothing was changed (429): it is at its depth or behind its age, or the
    task is not to wait (`on_limit="reject"`) and it would have to.

    `retry_after` is how many seconds to wait before trying again, None where that is not known.
    """

    @property
    def retry_after(self) -> float | None:
        seconds = self.problem.get("retry_after")
        return float(seconds) if isinstance(seconds, (int, float)) else None


class Invalid(PensumError, ValueError):
    """Some values are wrong and nothing was changed (400, 413, 415, 422, or found before anything was sent).

    `errors` names every wrong value as `(path, message)`; it is empty where the problem is not about one value.
    """

    def __init__(
        self,
        message: str,
        errors: Iterable[tuple[str, str]] = (),
        *,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, status=status, problem=problem)
        self.errors = [Problem(path, text) for path, text in errors]


class Forbidden(PensumError):
    """The server does not allow it: no or a wrong token, inline handlers switched off, a host that it does not serve
    (401, 403, 421)."""


class Unavailable(PensumError):
    """No answer came, or the server cannot take it now (502, 503, 504), after every repeat that was safe."""


class WaitTimeout(PensumError, TimeoutError):
    """The time to wait is over and the task has not ended. It goes on: wait again, or cancel it.

    `task` is how it was seen last, None when no answer came.
    """

    def __init__(self, message: str, task: Task | None = None) -> None:
        super().__init__(message)
        self.task = task


class TaskFailed(PensumError):
    """A task of which the result was needed has ended otherwise than as completed; `task` has its error."""

    def __init__(self, message: str, task: Task) -> None:
        super().__init__(message)
        self.task = task


class StartFailed(PensumError):
    """A server of this process's own could not be started. `stderr` is what the program wrote there last."""

    def __init__(self, message: str, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


def invalid(path: str, message: str) -> Invalid:
    """A wrong argument that is found before anything is sent."""
    return Invalid(f"{path}: {message}", [(path, message)])


_CLASSES: dict[int, type[PensumError]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: VersionMismatch,
    421: Forbidden,
    429: QueueFull,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
_INVALID = (400, 413, 415, 422)


def from_answer(request: str, status: int, body: Any) -> PensumError:
    """The exception for an answer that is no success; `request` is what was asked, such as `GET /tasks`."""
    problem = body if isinstance(body, dict) else {}
    detail = problem.get("detail") or problem.get("title")
    if not isinstance(detail, str):
        detail = f"the answer to {request} is no problem report of Pensum; check that a Pensum server listens there"
    message = f"{detail} (HTTP {status})"
    if status == 401:
        message += "; give a token as `token=` or in PENSUM_TOKEN"
    if status in _INVALID:
        found = problem.get("errors")
        entries = found if isinstance(found, list) else []
        errors = [
            (str(entry.get("path", "")), str(entry.get("message", ""))) for entry in entries if isinstance(entry, dict)
        ]
        return Invalid(message, errors, status=status, problem=problem)
    return _CLASSES.get(status, PensumError)(message, status=status, problem=problem)
