"""The routes of the API by the names that its OpenAPI document gives them, and requests as data."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from .errors import Invalid, invalid
from .inputs import query_text

V1 = "/api/v1"

OPERATIONS: dict[str, tuple[str, str]] = {
    "create_task": ("POST", f"{V1}/tasks"),
    "create_tasks": ("POST", f"{V1}/tasks/batch"),
    "list_tasks": ("GET", f"{V1}/tasks"),
    "get_task": ("GET", f"{V1}/tasks/{{id}}"),
    "update_task": ("PATCH", f"{V1}/tasks/{{id}}"),
    "delete_task": ("DELETE", f"{V1}/tasks/{{id}}"),
    "execute_task": ("POST", f"{V1}/tasks/{{id}}/execute"),
    "cancel_task": ("POST", f"{V1}/tasks/{{id}}/cancel"),
    "pause_task": ("POST", f"{V1}/tasks/{{id}}/pause"),
    "resume_task": ("POST", f"{V1}/tasks/{{id}}/resume"),
    "retry_task": ("POST", f"{V1}/tasks/{{id}}/retry"),
    "signal_task": ("POST", f"{V1}/tasks/{{id}}/signal"),
    "list_executions_of_task": ("GET", f"{V1}/tasks/{{id}}/executions"),
    "list_events": ("GET", f"{V1}/tasks/{{id}}/events"),
    "read_logs": ("GET", f"{V1}/tasks/{{id}}/logs"),
    "explain_task": ("GET", f"{V1}/tasks/{{id}}/explain"),
    "get_dependencies": ("GET", f"{V1}/tasks/{{id}}/dependencies"),
    "start_bulk": ("POST", f"{V1}/tasks/bulk"),
    "list_executions": ("GET", f"{V1}/executions"),
    "get_execution": ("GET", f"{V1}/executions/{{id}}"),
    "list_queues": ("GET", f"{V1}/queues"),
    "get_queue_stats": ("GET", f"{V1}/queues/stats"),
    "get_queue": ("GET", f"{V1}/queues/{{name}}"),
    "put_queue": ("PUT", f"{V1}/queues/{{name}}"),
    "delete_queue": ("DELETE", f"{V1}/queues/{{name}}"),
    "pause_queue": ("POST", f"{V1}/queues/{{name}}/pause"),
    "resume_queue": ("POST", f"{V1}/queues/{{name}}/resume"),
    "process_queue": ("POST", f"{V1}/queues/{{name}}/process"),
    "list_dead_letters": ("GET", f"{V1}/dead-letters"),
    "group_dead_letters": ("GET", f"{V1}/dead-letters/groups"),
    "list_intake": ("GET", f"{V1}/intake"),
    "retry_intake": ("POST", f"{V1}/intake/{{id}}/retry"),
    "delete_intake": ("DELETE", f"{V1}/intake/{{id}}"),
    "register_agent": ("POST", f"{V1}/agents"),
    "list_agents": ("GET", f"{V1}/agents"),
    "get_agent": ("GET", f"{V1}/agents/{{id}}"),
    "remove_agent": ("DELETE", f"{V1}/agents/{{id}}"),
    "drain_agent": ("POST", f"{V1}/agents/{{id}}/drain"),
    "undrain_agent": ("POST", f"{V1}/agents/{{id}}/undrain"),
    "leave_agent": ("POST", f"{V1}/agents/{{id}}/leave"),
    "poll_agent": ("POST", f"{V1}/agents/{{id}}/poll"),
    "heartbeat_agent": ("POST", f"{V1}/agents/{{id}}/heartbeat"),
    "complete_executions": ("POST", f"{V1}/executions/complete"),
    "list_breakers": ("GET", f"{V1}/breakers"),
    "get_breaker": ("GET", f"{V1}/breakers/{{name}}"),
    "put_breaker": ("PUT", f"{V1}/breakers/{{name}}"),
    "delete_breaker": ("DELETE", f"{V1}/breakers/{{name}}"),
    "reset_breaker": ("POST", f"{V1}/breakers/{{name}}/reset"),
    "trip_breaker": ("POST", f"{V1}/breakers/{{name}}/trip"),
    "list_nodes": ("GET", f"{V1}/nodes"),
    "get_status": ("GET", f"{V1}/system/status"),
    "get_metrics": ("GET", f"{V1}/system/metrics"),
    "get_performance": ("GET", f"{V1}/system/performance"),
    "get_health": ("GET", "/healthz"),
    "get_readiness": ("GET", "/readyz"),
    "get_openapi": ("GET", "/openapi.json"),
}

# Doing one of these twice does no more than once, by what they carry: they need no key, and the server keeps none.
_UNKEYED = frozenset({"poll_agent", "heartbeat_agent", "complete_executions"})

DEFAULT_URL = "http://127.0.0.1:7400"


@dataclass(frozen=True)
class Request:
    """A request to be sent, as often as its method allows."""

    operation: str
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does what sending it once does.

        A POST carries an idempotency key. What names a version would find another one after its own first success.
        """
        return "If-Match" not in self.headers

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.method} {self.path}"


def request(
    operation: str,
    *,
    path: Mapping[str, str | int] | None = None,
    query: Mapping[str, Any] | None = None,
    body: Any = None,
    content: bytes | None = None,
    if_match: int | None = None,
    idempotency_key: str | None = None,
) -> Request:
    """The request of an operation; raises `Invalid` for what no server could read. `content` is a body that is JSON
    already."""
    method, template = OPERATIONS[operation]
    parts = {name: _segment(name, value) for name, value in (path or {}).items()}
    headers: dict[str, str] = {}
    if method == "POST" and operation not in _UNKEYED:
        headers["Idempotency-Key"] = _printable("idempotency_key", idempotency_key or uuid.uuid4().hex)
    if if_match is not None:
        if isinstance(if_match, bool) or not isinstance(if_match, int):
            raise invalid("if_match", f"must be the version of what is changed, a number, not {if_match!r}")
        headers["If-Match"] = f'"{if_match}"'
    if body is not None:
        content = _json(body)
    if content is not None:
        headers["Content-Type"] = "application/json"
    values = {name: query_text(name, value) for name, value in (query or {}).items() if value is not None}
    return Request(operation, method, template.format(**parts), values, content, headers)


def _segment(name: str, value: str | int) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    # An empty segment and a dotted one would lead to another route.
    if not isinstance(text, str) or text in ("", ".", ".."):
        raise invalid(name, f"must name one, not {value!r}")
    return quote(text, safe="")


def _printable(name: str, text: object) -> str:
    if not isinstance(text, str) or not text or not all(" " <= character <= "~" for character in text):
        raise invalid(name, "must be text of printable ASCII characters")
    return text


def _json(body: Any) -> bytes:
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        fields = body.items() if isinstance(body, dict) else ()
        path = next((name for name, value in fields if not _is_json(value)), "body")
        raise invalid(path, f"cannot be written as JSON: {error}") from None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def base_url(url: str | None) -> str:
    """The URL of the server: as given, else PENSUM_URL, else the default of `pensum serve`."""
    url = url if url is not None else os.environ.get("PENSUM_URL") or DEFAULT_URL
    try:
        parts = urlsplit(url)
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        raise _bad_url(url) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _bad_url(url)
    return url.rstrip("/")


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine, for which no proxy of the environment is asked."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def token_header(token: str | None) -> dict[str, str]:
    """The header of the token: as given, else of PENSUM_TOKEN, else none."""
    token = token if token is not None else os.environ.get("PENSUM_TOKEN")
    return {"Authorization": f"Bearer {_printable('token', token)}"} if token else {}


def _bad_url(url: object) -> Invalid:
    return invalid("url", f"{url!r} is no URL of a server; write one such as {DEFAULT_URL}")
