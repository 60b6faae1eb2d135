"""JSON to Python values by type hints, and back. Hints are read once; what is left is a function per hint."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any, Literal, NamedTuple, TypeVar, Union

from ..errors import PensumError
from ..times import parse_time

Convert = Callable[[Any, str], Any]
"""Makes the value of a hint from JSON. The text says where it stands, for messages."""


class Mismatch(ValueError):
    """A value that does not fit its hint: where it stands, and why."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class Unsupported(TypeError):
    """A hint for which there is no JSON."""


def converter(hint: Any) -> Convert:
    """How values of a hint are made from JSON. Raises `Unsupported`."""
    return _converter(hint, {})


class Field(NamedTuple):
    """A field of an object: its hint, and whether it must be there."""

    hint: Any
    required: bool


def fields_of(hint: Any) -> dict[str, Field] | None:
    """The fields of a dataclass or TypedDict, None for anything else."""
    if typing.is_typeddict(hint):
        hints = {name: _bare(one) for name, one in typing.get_type_hints(hint).items()}
        return {name: Field(one, name in hint.__required_keys__) for name, one in hints.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        missing = dataclasses.MISSING
        return {
            item.name: Field(hints[item.name], item.default is missing and item.default_factory is missing)
            for item in dataclasses.fields(hint)
            if item.init
        }
    return None


def _bare(hint: Any) -> Any:
    """The hint within `Required[…]` and `NotRequired[…]`."""
    name = getattr(typing.get_origin(hint), "_name", None)
    return typing.get_args(hint)[0] if name in ("Required", "NotRequired") else hint


_LISTS: tuple[tuple[Any, Callable[[list[Any]], Any]], ...] = (
    (list, list), (set, set), (frozenset, frozenset), (Sequence, list),
)  # fmt: skip


def members(hint: Any) -> tuple[Any, ...] | None:
    """The alternatives of a union, None for anything else."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else None


def _converter(hint: Any, known: dict[Any, Convert]) -> Convert:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return lambda value, _: value
    if hint in _PLAIN:
        return _PLAIN[hint]
    if (alternatives := members(hint)) is not None:
        return _union([_converter(one, known) for one in alternatives], [named(one) for one in alternatives])
    if origin is Literal:
        return _literal(arguments)
    if hasattr(hint, "__supertype__"):
        return _converter(hint.__supertype__, known)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    if (found := fields_of(hint)) is not None:
        return known.get(hint) or _record(hint, found, known)
    kind = origin or hint
    if kind is tuple:
        return _tuple(arguments, known)
    for base, make in _LISTS:
        if kind is base:
            return _list(_converter(arguments[0] if arguments else Any, known), make)
    if kind in (dict, Mapping):
        if arguments and arguments[0] not in (str, Any):
            raise Unsupported(f"{named(hint)}: the names of a JSON object are text; write dict[str, …]")
        return _dict(_converter(arguments[1] if arguments else Any, known))
    raise Unsupported(
        f"{named(hint)} cannot be made from JSON; use int, float, str, bool, list, dict, datetime, Enum, Literal, a "
        f"dataclass, a TypedDict or a Union of them, or Any"
    )


def named(hint: Any) -> str:
    """What messages call a hint."""
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def shown(value: Any) -> str:
    """A value in a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _of(kind: type | tuple[type, ...], wanted: str) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, kind):
            raise Mismatch(path, f"must be {wanted}, not {shown(value)}")
        return value

    return convert


def _int(value: Any, path: str) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Mismatch(path, f"must be a whole number, not {shown(value)}")
    return value


def _float(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Mismatch(path, f"must be a number, not {shown(value)}")
    return float(value)


def _datetime(value: Any, path: str) -> datetime:
    try:
        return parse_time(value)
    except (PensumError, ValueError):
        raise Mismatch(
            path, f"must be a time such as '2030-01-31T09:30:00Z', with its offset, not {shown(value)}"
        ) from None


def _date(value: Any, path: str) -> date:
    try:
        return date.fromisoformat(value)
    except (ValueError, TypeError):
        raise Mismatch(path, f"must be a date such as '2030-01-31', not {shown(value)}") from None


def _timedelta(value: Any, path: str) -> timedelta:
    try:
        return timedelta(seconds=_float(value, path))
    except (OverflowError, ValueError) as error:
        raise Mismatch(path, f"must be a number of seconds, not {shown(value)}") from error


_PLAIN: dict[Any, Convert] = {
    int: _int,
    float: _float,
    str: _of(str, "text"),
    bool: _of(bool, "true or false"),
    None: _of(type(None), "null"),
    type(None): _of(type(None), "null"),
    datetime: _datetime,
    date: _date,
    timedelta: _timedelta,
}


def _union(converts: list[Convert], names: list[str]) -> Convert:
    def convert(value: Any, path: str) -> Any:
        problems: list[Mismatch] = []
        for one in converts:
            try:
                return one(value, path)
            except Mismatch as problem:
                problems.append(problem)
        # What went wrong within an object says more than the list of alternatives.
        inner = next((problem for problem in problems if problem.path != path), None)
        raise inner or Mismatch(path, f"must be one of {', '.join(names)}, not {shown(value)}")

    return convert


def _literal(allowed: tuple[Any, ...]) -> Convert:
    plain = [(one.value if isinstance(one, Enum) else one, one) for one in allowed]

    def convert(value: Any, path: str) -> Any:
        for json, literal in plain:
            # True is no 1 here.
            if type(json) is type(value) and json == value:
                return literal
        raise Mismatch(path, f"must be one of {', '.join(repr(json) for json, _ in plain)}, not {shown(value)}")

    return convert


def _enum(kind: type[Enum]) -> Convert:
    by_value = {one.value: one for one in kind}

    def convert(value: Any, path: str) -> Any:
        found = by_value.get(value) if isinstance(value, (str, int, float)) else None
        if found is None or isinstance(value, bool) is not isinstance(found.value, bool):
            raise Mismatch(path, f"must be one of {', '.join(repr(one) for one in by_value)}, not {shown(value)}")
        return found

    return convert


def _list(item: Convert, make: Callable[[list[Any]], Any]) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            raise Mismatch(path, f"must be a list, not {shown(value)}")
        return make([item(one, f"{path}[{index}]") for index, one in enumerate(value)])

    return convert


def _tuple(arguments: tuple[Any, ...], known: dict[Any, Convert]) -> Convert:
    if not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _list(_converter(arguments[0] if arguments else Any, known), tuple)
    items = [_converter(one, known) for one in arguments]

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, list) or len(value) != len(items):
            raise Mismatch(path, f"must be a list of {len(items)} values, not {shown(value)}")
        return tuple(one(item, f"{path}[{n}]") for n, (one, item) in enumerate(zip(items, value)))

    return convert


def _dict(item: Convert) -> Convert:
    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(path, f"must be an object, not {shown(value)}")
        return {name: item(one, f"{path}.{name}") for name, one in value.items()}

    return convert


def _record(kind: Any, fields: dict[str, Field], known: dict[Any, Convert]) -> Convert:
    converts: dict[str, Convert] = {}

    def convert(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(path, f"must be an object, not {shown(value)}")
        return kind(**object_of(value, path, fields, converts))

    # Known before its fields are, for a class that has fields of its own kind.
    known[kind] = convert
    converts.update({name: _converter(field.hint, known) for name, field in fields.items()})
    return convert


def object_of(
    value: Mapping[str, Any], path: str, fields: Mapping[str, Field], converts: Mapping[str, Convert]
) -> dict[str, Any]:
    """The fields of a JSON object, each by its hint; unknown ones and missing ones are refused."""
    made = {}
    for name, one in value.items():
        if name not in converts:
            known = ", ".join(fields) or "none"
            raise Mismatch(f"{path}.{name}", f"is not known here; known are: {known}")
        made[name] = converts[name](one, f"{path}.{name}")
    for name, field in fields.items():
        if field.required and name not in made:
            raise Mismatch(f"{path}.{name}", "is missing")
    return made


def plain_json(value: Any) -> Any:
    """The JSON of what is none by itself: for `json.dumps(default=…)`."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise TypeError(f"{value!r} has no time zone; give it one, such as `datetime.now(timezone.utc)`")
        return value.isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{shown(value)} of type {type(value).__name__} has no JSON")
