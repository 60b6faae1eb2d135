# Made from _async/transport.py by tools/make_sync.py: change that one.
"""One request: sent, repeated where that is safe, answered or refused with an exception."""

from __future__ import annotations

import random
from collections.abc import Iterator, Callable, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from ..errors import PensumError, Unavailable, from_answer
from ..inputs import page_size
from ..operations import Request, is_local, request
from .bridge import sleep

T = TypeVar("T")

# The first pause before a repeat and the longest, in seconds; each is twice the one before, less a random part.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
# A server may ask for a longer pause with `Retry-After`; longer than this is not waited.
_LONGEST_REQUESTED_PAUSE = 30.0
# The stream of a log has a sign of life every 15 s.
_STREAM_SILENCE = 45.0
_UNAVAILABLE = (502, 503, 504)
# Nothing of the request has reached the server.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Transport:
    """Sends requests to one server."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout: float,
        retries: int,
        transport: httpx.BaseTransport | None,
    ) -> None:
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self.closed = False
        self._http = httpx.Client(
            headers={"Accept": "application/json", "User-Agent": "pensum-python", **headers},
            timeout=timeout,
            transport=transport,
            trust_env=not is_local(url),
        )

    def close(self) -> None:
        """Closes the connections."""
        self.closed = True
        self._http.close()

    def call(
        self, operation: str, *, timeout: float | None = None, retries: int | None = None, **arguments: Any
    ) -> Any:
        """The JSON of the answer, None where it has none. `arguments` are those of `operations.request`."""
        return self._send(
            request(operation, **arguments),
            self.timeout if timeout is None else timeout,
            self.retries if retries is None else retries,
        )

    def _send(self, asked: Request, timeout: float, retries: int) -> Any:
        lost = False
        attempt = 0
        failure: PensumError
        while True:
            attempt += 1
            try:
                response = self._http.send(self._build(asked, timeout))
            except httpx.TransportError as error:
                sent = not isinstance(error, _NOT_SENT)
                failure = self._unreachable(asked, error, attempt, unsure=sent and not asked.repeatable)
                pause = 0.0
            else:
                if response.status_code not in _UNAVAILABLE:
                    # A repeated DELETE whose first answer was lost finds nothing any more: it did what it should.
                    if lost and asked.method == "DELETE" and response.status_code == 404:
                        return None
                    return self._read(asked, response)
                sent = True
                failure = self._refusal(asked, response)
                pause = _requested_pause(response)
            lost = lost or sent
            if attempt > retries or (sent and not asked.repeatable):
                raise failure
            sleep(max(pause, _pause(attempt)))

    def _build(self, asked: Request, timeout: float) -> httpx.Request:
        if self.closed:
            raise PensumError("this client is closed; make a new one, or do this within its `with` block")
        return self._http.build_request(
            asked.method,
            self.url + asked.path,
            params=dict(asked.query),
            content=asked.content,
            headers=dict(asked.headers),
            timeout=timeout,
        )

    def _read(self, asked: Request, response: httpx.Response) -> Any:
        if not response.is_success:
            raise self._refusal(asked, response)
        if response.status_code == 204:
            return None
        try:
            return response.json()
        except ValueError:
            raise PensumError(
                f"{asked.title} was answered with something else than JSON; check that a Pensum server listens at "
                f"{self.url}",
                status=response.status_code,
            ) from None

    def _refusal(self, asked: Request, response: httpx.Response) -> PensumError:
        try:
            body = response.json()
        except ValueError:
            body = None
        return from_answer(f"{asked.title} at {self.url}", response.status_code, body)

    def _unreachable(self, asked: Request, error: httpx.TransportError, attempts: int, unsure: bool) -> Unavailable:
        times = "once" if attempts == 1 else f"{attempts} times"
        reason = str(error) or type(error).__name__
        advice = (
            "it may have been done nevertheless: read it before you repeat this"
            if unsure
            else "check that the server runs and that this is its URL (`pensum serve`, PENSUM_URL)"
        )
        return Unavailable(f"no answer from {self.url} to {asked.title}, tried {times}: {reason}; {advice}")

    def pages(
        self, operation: str, parse: Callable[[Any], T], limit: int | None, query: Mapping[str, Any], **arguments: Any
    ) -> Iterator[T]:
        """The items of a list, page by page, `limit` at most."""
        size, left, cursor = page_size(limit), limit, None
        while left is None or left > 0:
            size = size if left is None else min(size, left)
            page = self.call(operation, query={**query, "limit": size, "cursor": cursor}, **arguments)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise PensumError(f"the server at {self.url} sent no page of a list; is it a Pensum server?")
            for item in page["items"]:
                yield parse(item)
            left = None if left is None else left - len(page["items"])
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    @contextmanager
    def stream(self, operation: str, **arguments: Any) -> Iterator[Iterator[str]]:
        """The lines of an answer that goes on, as server-sent events; connection errors are `Unavailable`."""
        asked = request(operation, **arguments)
        message = self._build(asked, _STREAM_SILENCE)
        message.headers["Accept"] = "text/event-stream"
        try:
            response = self._http.send(message, stream=True)
            try:
                if not response.is_success:
                    response.read()
                    raise self._refusal(asked, response)
                yield self._lines(response)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise self._unreachable(asked, error, 1, unsure=False) from error

    def _lines(self, response: httpx.Response) -> Iterator[str]:
        # Those of httpx end also at separators that stand within the JSON of a line.
        rest = b""
        for chunk in response.iter_bytes():
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").rstrip("\r")


def _pause(attempt: int) -> float:
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * float(2 ** min(attempt - 1, 10)))
    return longest * random.uniform(0.5, 1.0)


def _requested_pause(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers.get("Retry-After", "0")), 0.0), _LONGEST_REQUESTED_PAUSE)
    except ValueError:
        return 0.0
