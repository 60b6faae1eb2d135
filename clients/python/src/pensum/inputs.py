"""Arguments to the JSON that the API takes. What only the server can judge goes through for it to judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Union

from .errors import invalid
from .models import BulkOperation, Resources, RetryPolicy, Task
from .records import Record
from .times import Duration, Time, duration_json, time_text

TaskRef = Union[str, Task, BulkOperation]
"""Which task: its id, the task itself, or a bulk operation for the task that does it."""

Filter = Union[str, Iterable[str], None]


class _Unset(Enum):
    UNSET = "not given"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset.UNSET
"""The default of arguments that `None` is a value of: the field stays as it is."""

Unset = _Unset


@dataclass(frozen=True, kw_only=True)
class Unique:
    """At most one unfinished task of a handler has the key. `ttl` holds it for this long from the submission on;
    `on_conflict` is `keep`, `replace` or `reject`."""

    key: str
    ttl: Duration | None = None
    on_conflict: str | None = None


@dataclass(frozen=True)
class NewTask:
    """A task to create, as an item of a batch. `ref` is its name for `depends_on` of other items."""

    handler: str | None = None
    parameters: Any = None
    _: dataclasses.KW_ONLY
    ref: str | None = None
    name: str | None = None
    description: str | None = None
    task_type: str | None = None
    metadata: Any = None
    execution_context: Any = None
    queue: str | None = None
    priority: str | int | None = None
    depends_on: TaskRef | Sequence[TaskRef] | None = None
    on_dependency_failure: str | None = None
    run_at: Time | None = None
    delay: Duration | None = None
    deadline: Time | None = None
    expires_at: Time | None = None
    timeout: Duration | None = None
    queue_timeout: Duration | None = None
    heartbeat_timeout: Duration | None = None
    max_retries: int | None = None
    retry: RetryPolicy | Mapping[str, Any] | None = None
    on_limit: str | None = None
    units: int | None = None
    key: str | None = None
    unique: str | Unique | Mapping[str, Any] | None = None
    requires: Sequence[str] | None = None
    agent_id: str | None = None
    resources: Resources | Mapping[str, Any] | None = None
    created_by: str | None = None
    assigned_to: str | None = None
    tags: Sequence[str] | None = None


_TIMES = frozenset({"run_at", "deadline", "expires_at", "created_after", "created_before"})
_DURATIONS = frozenset({"delay", "timeout", "queue_timeout", "heartbeat_timeout", "max_delay", "ttl", "per", "lease",
                        "window", "open_for", "max_age", "ageing"})  # fmt: skip
_PARTS = frozenset({"retry", "unique", "resources", "rate_limit"})
_REFS = frozenset({"depends_on", "dependencies"})
# Any JSON of the user's own, in which nothing is converted.
_FREE = frozenset({"parameters", "metadata", "execution_context"})


def ident(task: object, path: str = "task") -> str:
    """The id that a task reference means."""
    if isinstance(task, BulkOperation):
        task = task.task_id
    elif isinstance(task, Record):
        task = getattr(task, "id", None)
    if not isinstance(task, str) or not task:
        raise invalid(path, f"must be an id or a task, not {task!r}")
    return task


def plain(value: Any) -> Any:
    """The value of an enum member, anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def field_json(name: str, value: Any, path: str) -> Any:
    """The JSON of one field, by its name."""
    if value is None or name in _FREE:
        return value
    if name in _TIMES:
        return time_text(value, path)
    if name in _DURATIONS:
        return duration_json(value, path)
    if name in _REFS:
        refs = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        return [ident(ref, f"{path}[{index}]") for index, ref in enumerate(refs)]
    if name in _PARTS:
        if name == "unique" and isinstance(value, str):
            return {"key": value}
        return value if isinstance(value, str) else object_json(value, path)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else plain(value)


def object_json(value: object, path: str = "") -> dict[str, Any]:
    """The JSON object of a dataclass or mapping. Fields of a dataclass that are None are left out, those of a mapping
    are sent; what a record has beyond the fields that this client knows goes back to the server as it came."""
    if isinstance(value, Mapping):
        given = dict(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("raw", "_")]
        given = {name: getattr(value, name) for name in names if getattr(value, name) is not None}
        if isinstance(value, Record):
            given = {**value.extra, **given}
    else:
        raise invalid(path or "body", f"must be a mapping or one of the package's own classes, not {value!r}")
    prefix = f"{path}." if path else ""
    return {name: field_json(name, item, f"{prefix}{name}") for name, item in given.items()}


def changes(**given: Any) -> dict[str, Any]:
    """The JSON of a change: what is UNSET stays, None is sent as null."""
    return {name: field_json(name, value, name) for name, value in given.items() if value is not UNSET}


def given(**arguments: Any) -> dict[str, Any]:
    """The JSON of arguments that None means the absence of."""
    return {name: field_json(name, value, name) for name, value in arguments.items() if value is not None}


def task_filter(status: Filter, **arguments: Any) -> dict[str, Any]:
    """A filter as the bulk route takes it: `status` a list."""
    found = given(**arguments)
    if status is not None:
        statuses = [status] if isinstance(status, str) else list(status)
        found = {"status": [plain(one) for one in statuses], **found}
    return found


def query_text(name: str, value: Any) -> str:
    """A query parameter as text."""
    value = plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(query_text(name, item) for item in value)
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, (datetime, timedelta)):
        return str(field_json(name, value, name))
    raise invalid(name, f"must be text, not {value!r}")


def page_size(limit: int | None, most: int = 200) -> int:
    """How many items to ask for at once when `limit` are wanted in all."""
    if limit is None:
        return most
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise invalid("limit", f"must be a number of items, zero or more, not {limit!r}")
    return min(max(limit, 1), most)
