"""JSON Schema (2020-12) from type hints."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any, Literal, TypeVar

from .hints import Field, fields_of, members, plain_json

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    datetime: {"type": "string", "format": "date-time"},
    date: {"type": "string", "format": "date"},
    timedelta: {"type": "number", "description": "seconds"},
}


def object_schema(fields: Mapping[str, Field], defaults: Mapping[str, Any], is_open: bool) -> Schema:
    """The schema of an object with these fields; `is_open` when it may have others."""
    definitions: dict[str, Schema] = {}
    schema = _object(fields, defaults, definitions)
    if is_open:
        del schema["additionalProperties"]
    if definitions:
        schema["$defs"] = definitions
    return schema


def _object(fields: Mapping[str, Field], defaults: Mapping[str, Any], definitions: dict[str, Schema]) -> Schema:
    properties = {name: dict(_schema(field.hint, definitions)) for name, field in fields.items()}
    for name, value in defaults.items():
        try:
            properties[name]["default"] = json.loads(json.dumps(value, default=plain_json, allow_nan=False))
        except (TypeError, ValueError):
            # A default without JSON is none that a sender could see.
            pass
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [name for name, field in fields.items() if field.required]
    if required:
        schema["required"] = required
    return schema


def _schema(hint: Any, definitions: dict[str, Schema]) -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return {}
    if hint in _PLAIN:
        return _PLAIN[hint]
    if (alternatives := members(hint)) is not None:
        return {"anyOf": [_schema(one, definitions) for one in alternatives]}
    if origin is Literal:
        return {"enum": [one.value if isinstance(one, Enum) else one for one in arguments]}
    if hasattr(hint, "__supertype__"):
        return _schema(hint.__supertype__, definitions)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [one.value for one in hint]}
    if (fields := fields_of(hint)) is not None:
        if hint.__name__ not in definitions:
            # There before its fields are, for a class that has fields of its own kind.
            definitions[hint.__name__] = {}
            definitions[hint.__name__].update(_object(fields, {}, definitions))
        return {"$ref": f"#/$defs/{hint.__name__}"}
    kind = origin or hint
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        items = [_schema(one, definitions) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if kind in (list, tuple, set, frozenset, Sequence):
        schema: Schema = {"type": "array"}
        if arguments:
            schema["items"] = _schema(arguments[0], definitions)
        return {**schema, "uniqueItems": True} if kind in (set, frozenset) else schema
    return {"type": "object", "additionalProperties": _schema(arguments[1], definitions) if arguments else {}}
