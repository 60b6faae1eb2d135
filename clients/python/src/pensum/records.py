"""The base of what the API answers: frozen dataclasses made from JSON by their type hints, unknown fields kept."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from .errors import PensumError
from .times import parse_duration, parse_time

R = TypeVar("R", bound="Record")
Convert = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that the API answered.

    Times are aware datetimes, durations timedeltas. `record["field"]` is a field as the server sent it, whether this
    version of the client knows it or not.
    """

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The JSON as the server sent it; empty for a record made by hand."""

    @property
    def extra(self) -> dict[str, Any]:
        """The fields that the server sent and this version of the client does not know."""
        known = {item.name for item in dataclasses.fields(self)}
        return {name: value for name, value in self.raw.items() if name not in known}

    def __getitem__(self, name: str) -> Any:
        return self.raw[name]

    @classmethod
    def parse(cls: type[R], json: Any) -> R:
        """The record of a JSON object."""
        if not isinstance(json, dict):
            raise PensumError(f"the server sent {json!r} where a {cls.__name__} was expected; is it a Pensum server?")
        values: dict[str, Any] = {}
        for name, (convert, optional) in _fields(cls).items():
            if json.get(name) is not None:
                values[name] = convert(json[name])
            elif not optional:
                raise PensumError(
                    f"the server sent a {cls.__name__} without `{name}`; is it a Pensum server of this version?"
                )
        return cls(**values, raw=json)


_known: dict[type[Record], dict[str, tuple[Convert, bool]]] = {}


def _fields(cls: type[Record]) -> dict[str, tuple[Convert, bool]]:
    """How each field is made of its JSON, and whether it may be absent."""
    if cls not in _known:
        _known[cls] = _read_hints(cls)
    return _known[cls]


def _read_hints(cls: type[Record]) -> dict[str, tuple[Convert, bool]]:
    hints = typing.get_type_hints(cls)
    found = {}
    for item in dataclasses.fields(cls):
        if item.name != "raw":
            has_default = not (item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING)
            found[item.name] = (_converter(hints[item.name]), has_default or hints[item.name] is Any)
    return found


def _as_it_is(value: Any) -> Any:
    return value


def _converter(hint: Any) -> Convert:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [argument for argument in arguments if argument is not type(None)]
        return _converter(kinds[0]) if len(kinds) == 1 else _as_it_is
    if origin is tuple:
        return _each(_converter(arguments[0]))
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _values(_converter(arguments[1]))
    if hint is datetime:
        return parse_time
    if hint is timedelta:
        return parse_duration
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.parse
    return _as_it_is


def _each(convert: Convert) -> Convert:
    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise PensumError(f"the server sent {value!r} where a list was expected; is it a Pensum server?")
        return tuple(convert(item) for item in value)

    return parse


def _values(convert: Convert) -> Convert:
    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise PensumError(f"the server sent {value!r} where an object was expected; is it a Pensum server?")
        return {name: convert(item) for name, item in value.items()}

    return parse
