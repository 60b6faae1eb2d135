"""A server of agents in memory, for what the real one does not do on demand: slow answers, none, wrong ones."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fake:
    """Gives tasks to one agent. `before(route, body)` may answer in its stead with a status and a body, or return None;
    `lose` is the number of answers, after whatever was asked has been done, that are not sent."""

    def __init__(self, redeliver: bool = True) -> None:
        self.before: Callable[[str, Any], tuple[int, Any] | None] = lambda route, body: None
        self.lose = 0
        self.redeliver = redeliver
        self.requests: list[tuple[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []
        self.held: dict[str, dict[str, Any]] = {}
        self.results: list[dict[str, Any]] = []
        self.beats: list[dict[str, Any]] = []
        self.cancel: list[str] = []
        self.pause: list[str] = []
        self.lost: list[str] = []
        self.left: list[str] = []
        self._condition = threading.Condition()
        self._poll = 0
        self._count = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
                route = self.path.removeprefix("/api/v1")
                outer.requests.append((route, body))
                status, answer = outer.before(route, body) or (200, outer.answer(route, body))
                if outer.lose > 0:
                    outer.lose -= 1
                    self.close_connection = True
                    return
                content = json.dumps(answer).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # The other side has gone, as it may.

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def add(self, handler: str, parameters: Any = None, timeout: float = 300, checkpoint: Any = None) -> str:
        with self._condition:
            self._count += 1
            execution = f"task-{self._count}.1"
            task = {"id": f"task-{self._count}", "handler": handler, "parameters": parameters or {},
                    "timeout": timeout, "attempt": 1}  # fmt: skip
            item = {"task": task, "execution_id": execution, "lease_token": f"token-{self._count}",
                    "lease_expires_at": "2030-01-01T00:00:00Z"}  # fmt: skip
            self.waiting.append(item if checkpoint is None else {**item, "checkpoint": checkpoint})
            self._condition.notify_all()
            return execution

    def answer(self, route: str, body: Any) -> Any:
        what = route.rsplit("/", 1)[1]
        if what == "poll":
            return self._answer_poll(body)
        if what == "heartbeat":
            self.beats.append(body)
            return {"cancel": self.cancel, "pause": self.pause, "lost": self.lost, "drain": False,
                    "lease_expires_at": "2030-01-01T00:00:00Z"}  # fmt: skip
        if what == "complete":
            return {"results": self._accept(body["results"])}
        if what == "leave":
            self.left.append(body["session"])
            return None
        return {**body, "status": "idle", "draining": False, "active_tasks": 0, "version": 1, "name": body["id"],
                "lease": 30}  # fmt: skip

    def _accept(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with self._condition:
            answers = []
            for one in results:
                seen = any(one["lease_token"] == result["lease_token"] for result in self.results)
                self.results.append(one)
                self.held.pop(one["execution_id"], None)
                status = "repeat" if seen else "accepted"
                answers.append({"execution_id": one["execution_id"], "status": status})
            self._condition.notify_all()
            return answers

    def _answer_poll(self, body: Any) -> Any:
        accepted = self._accept(body["results"])
        with self._condition:
            self._poll += 1
            mine, until = self._poll, time.monotonic() + body["wait_ms"] / 1000
            self._condition.notify_all()
            again = [one for name, one in self.held.items() if name not in body["have"]] if self.redeliver else []
            while not again and not self.waiting and mine == self._poll and time.monotonic() < until:
                self._condition.wait(until - time.monotonic())
            given = again
            if not again and mine == self._poll:
                given, self.waiting = self.waiting[: body["max"]], self.waiting[body["max"] :]
                self.held.update({one["execution_id"]: one for one in given})
            return {"tasks": given, "accepted": accepted, "drain": False}

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.results, self.beats[-3:])
            time.sleep(0.005)

    def outcomes(self) -> dict[str, Any]:
        """The first outcome of each execution."""
        return {one["execution_id"]: one["outcome"] for one in reversed(self.results)}
