"""Reads TOML well enough for dependency lists, on Pythons older than 3.11, which brought `tomllib`.

Understands tables, arrays of tables, dotted and quoted keys, strings, inline tables and arrays. Everything
else (dates, numbers, booleans) stays the text that it is.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Tuple

TOKEN = re.compile(
    r'''\s+|\#[^\n]*|(?P<string>"""(?:[^\\]|\\.)*?"""|\'\'\'.*?\'\'\'|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')'''
    r"|(?P<sign>[\[\]{}=,])|(?P<bare>[^\s\[\]{}=,\"'#]+)|(?P<bad>.)",
    re.DOTALL,
)
ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|\s+|.)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
MAX_DEPTH = 50

Table = Dict[str, Any]


def load(source: str) -> Table:
    """The document as nested dictionaries; `ValueError` where it is not TOML."""
    root: Table = {}
    table = root
    lines = iter(statements(source))
    for statement in lines:
        if statement.startswith("[["):
            table = append_table(root, split_key(statement.strip()[2:-2]))
        elif statement.startswith("["):
            table = descend(root, split_key(statement.strip()[1:-1]))
        else:
            key, _, value = partition(statement)
            parts = split_key(key)
            descend(table, parts[:-1])[parts[-1]] = parse_value(value)
    return root


def statements(source: str) -> List[str]:
    """The document cut into statements: a value may go on over lines inside brackets or long strings."""
    found, depth, start = [], 0, 0
    end = 0
    for match in TOKEN.finditer(source):
        sign = match.group("sign")
        depth += (sign in ("[", "{")) - (sign in ("]", "}")) if sign else 0
        spans_lines = match.group("string") is None and "\n" in match.group()
        if spans_lines and depth <= 0:
            found.append(source[start : match.start()])
            start, depth = match.end(), 0
        elif match.group().startswith("#") and match.group("string") is None and depth <= 0:
            found.append(source[start : match.start()])
            start = match.end()
        end = match.end()
    found.append(source[start:end])
    return [statement.strip() for statement in found if statement.strip()]


def partition(statement: str) -> Tuple[str, str, str]:
    """Key and value of `key = value`, past any equals sign inside a quoted key."""
    for match in TOKEN.finditer(statement):
        if match.group("sign") == "=":
            return statement[: match.start()], "=", statement[match.end() :]
    raise ValueError(f"not a TOML statement: {statement[:40]!r}")


def split_key(key: str) -> List[str]:
    """The parts of a dotted key; a quoted part may contain dots."""
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([^\s."\']+)', key)
    if not parts:
        raise ValueError("a TOML key is empty")
    return [ESCAPE.sub(unescape, double) or single or bare for double, single, bare in parts]


def descend(table: Table, parts: List[str]) -> Table:
    """The table at a path, made where it is missing; of an array of tables, the last."""
    for part in parts:
        inner = table.setdefault(part, {})
        table = inner[-1] if isinstance(inner, list) and inner else inner
        if not isinstance(table, dict):
            raise ValueError(f"the TOML key {part!r} is no table")
    return table


def append_table(root: Table, parts: List[str]) -> Table:
    """A new table at the end of the array of tables at a path."""
    tables = descend(root, parts[:-1]).setdefault(parts[-1], [])
    if not isinstance(tables, list):
        raise ValueError(f"the TOML key {parts[-1]!r} is no array of tables")
    tables.append({})
    added: Table = tables[-1]
    return added


def parse_value(source: str) -> Any:
    """A value: string, array, inline table, or the text of anything else."""
    tokens = [match for match in TOKEN.finditer(source) if match.lastgroup]
    value, rest = take_value(tokens, 0, 0)
    if rest != len(tokens):
        raise ValueError(f"text after a TOML value: {source[:40]!r}")
    return value


def take_value(tokens: List["re.Match[str]"], at: int, depth: int) -> Tuple[Any, int]:
    """The value that begins at token `at`, and where the next token is."""
    if at >= len(tokens) or depth > MAX_DEPTH:
        raise ValueError("a TOML value is missing or nested too deep")
    kind, token = tokens[at].lastgroup, tokens[at].group()
    if kind == "string":
        return unquote(token), at + 1
    if kind == "bare":
        return token, at + 1
    if token == "[":
        return take_array(tokens, at + 1, depth + 1)
    if token == "{":
        return take_inline_table(tokens, at + 1, depth + 1)
    raise ValueError(f"no TOML value begins with {token!r}")


def take_array(tokens: List["re.Match[str]"], at: int, depth: int) -> Tuple[List[Any], int]:
    """The items up to the closing bracket."""
    items = []
    while at < len(tokens) and tokens[at].group() != "]":
        item, at = take_value(tokens, at, depth)
        items.append(item)
        if at < len(tokens) and tokens[at].group() == ",":
            at += 1
    if at >= len(tokens):
        raise ValueError("a TOML array has no end")
    return items, at + 1


def take_inline_table(tokens: List["re.Match[str]"], at: int, depth: int) -> Tuple[Table, int]:
    """The pairs up to the closing brace."""
    table: Table = {}
    while at < len(tokens) and tokens[at].group() != "}":
        start = at
        while at < len(tokens) and tokens[at].group() != "=":
            at += 1
        parts = split_key("".join(token.group() for token in tokens[start:at]))
        value, at = take_value(tokens, at + 1, depth)
        descend(table, parts[:-1])[parts[-1]] = value
        if at < len(tokens) and tokens[at].group() == ",":
            at += 1
    if at >= len(tokens):
        raise ValueError("a TOML inline table has no end")
    return table, at + 1


def unquote(token: str) -> str:
    """The string that a quoted token means."""
    for quote in ('"""', "'''"):
        if token.startswith(quote):
            inner = token[3:-3]
            inner = inner[1:] if inner.startswith("\n") else inner
            return inner if quote == "'''" else ESCAPE.sub(unescape, inner)
    return ESCAPE.sub(unescape, token[1:-1]) if token[0] == '"' else token[1:-1]


def unescape(match: "re.Match[str]") -> str:
    """The character that an escape sequence means; a backslash before a line end joins the lines."""
    code = match.group(1)
    if code[0] in "uU" and len(code) > 1:
        return chr(min(int(code[1:], 16), 0x10FFFF))
    return "" if code.isspace() else ESCAPES.get(code, code)
