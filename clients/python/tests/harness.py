"""What the tests stand on: the real server, a proxy that loses answers, and both clients behind one face."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pensum


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Store:
    """An empty store: a file, or a database of the server that `PENSUM_TEST_POSTGRES` names."""

    def __init__(self, directory: Path) -> None:
        self._server = os.environ.get("PENSUM_TEST_POSTGRES")
        if self._server:
            self._database = f"python_{uuid.uuid4().hex}"
            self._psql(f"CREATE DATABASE {self._database}")
            self.url = urlsplit(self._server)._replace(path=f"/{self._database}").geturl()
        else:
            self.url = f"sqlite:{directory}/store.db"

    def _psql(self, statement: str) -> None:
        psql = Path(os.environ.get("PENSUM_TEST_POSTGRES_BIN", ""), "psql")
        subprocess.run([psql, "--quiet", "--command", statement, str(self._server)], check=True)

    def drop(self) -> None:
        """Files go with the directory of the test."""
        if self._server:
            self._psql(f"DROP DATABASE {self._database} WITH (FORCE)")


class Server:
    """`pensum serve` on one port and one store, to be killed and started again."""

    def __init__(self, directory: Path, *args: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        self.args = args
        self.store = Store(directory)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        command = [pensum.find_binary(), "serve", "--db", self.store.url, "--grace", "1"]
        with open(self.directory / "stderr", "a") as stderr:
            self.process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}", *self.args],
                stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), (self.directory / "stderr").read_text()
        return self

    def kill(self) -> None:
        self._end("kill")

    def stop(self) -> None:
        self._end("terminate")

    def _end(self, how: str) -> None:
        if self.process is not None:
            getattr(self.process, how)()
            self.process.wait(timeout=30)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


class Proxy:
    """Passes connections on to a server. The next `lose` requests reach it, and their answers are thrown away."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.lose = 0
        self.passed: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """One request after the other, each read and answered as a whole."""
        with contextlib.suppress(OSError), connection, socket.create_connection(("127.0.0.1", self.upstream)) as up:
            while request := _message(connection):
                self.passed.append(request)
                up.sendall(request)
                answer = _message(up)
                if self.lose > 0:
                    # The server has answered, so it has done what was asked.
                    self.lose -= 1
                    return
                connection.sendall(answer)


def _message(stream: socket.socket) -> bytes:
    """An HTTP message with a Content-Length or without a body; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < wanted:
        body += stream.recv(65536)
    return head + b"\r\n\r\n" + body


class Loop:
    """An event loop in a thread, on which asynchronous things are done from outside."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=120)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()


class Blocking:
    """An asynchronous object with the face of its synchronous sister."""

    def __init__(self, target: Any, loop: Loop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if type(value).__module__.startswith("pensum._async"):
            return Blocking(value, self._loop)
        if not callable(value):
            return value
        return lambda *args, **named: self._finish(value(*args, **named))

    def _finish(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            return self._loop.run(value)
        return self._each(value) if inspect.isasyncgen(value) else value

    def _each(self, items: Any) -> Iterator[Any]:
        while True:
            try:
                item = self._loop.run(items.__anext__())
            except StopAsyncIteration:
                return
            yield item


class Recorder:
    """A transport that remembers which requests went through it."""

    def __init__(self, kind: str) -> None:
        self.seen: list[tuple[str, str]] = []
        self.queries: list[str] = []
        outer = self

        class Sync(httpx.HTTPTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                outer.note(request)
                return super().handle_request(request)

        class Async(httpx.AsyncHTTPTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                outer.note(request)
                return await super().handle_async_request(request)

        self.transport: Any = Sync() if kind == "sync" else Async()

    def note(self, request: httpx.Request) -> None:
        self.seen.append((request.method, request.url.path))
        self.queries.append(request.url.query.decode())


class Clients:
    """Makes clients of one kind and closes them at the end of the test."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._loop = Loop() if kind == "async" else None
        self._made: list[Any] = []

    def __call__(self, url: str | None = None, **named: Any) -> Any:
        if self._loop is None:
            made: Any = pensum.Client(url, **named)
        else:
            made = Blocking(pensum.AsyncClient(url, **named), self._loop)
        self._made.append(made)
        return made

    def embedded(self, *args: Any, **named: Any) -> Any:
        if self._loop is None:
            made: Any = pensum.Client.embedded(*args, **named)
        else:
            made = Blocking(self._loop.run(pensum.AsyncClient.embedded(*args, **named)), self._loop)
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()
        if self._loop is not None:
            self._loop.close()
