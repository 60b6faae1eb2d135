# Made from _async/client.py by tools/make_sync.py: change that one.
"""The synchronous client."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import httpx

from ..embedded import DEFAULT_DB, DEFAULT_STOP, EmbeddedServer
from ..errors import Conflict, NotFound, invalid
from ..inputs import TaskRef
from ..operations import base_url, token_header
from ..system import Health, Node, Queue, SystemStatus
from ..times import seconds
from .agents import Agents
from .breakers import Breakers
from .bulk import Bulk
from .queues import DeadLetters, Executions, Intake, Queues
from .tasks import Tasks
from .transport import Transport

_UNENDED = ("pending", "ready", "running", "retrying", "paused")


class Nodes:
    """The nodes that work on the store."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> Iterator[Node]:
        """The nodes, oldest first."""
        return self._transport.pages("list_nodes", Node.parse, limit, {})


class System:
    """The server and its store as a whole."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def status(self) -> SystemStatus:
        """How the node is: version, counts, success rate, and the nodes beside it."""
        return SystemStatus.parse(self._transport.call("get_status"))

    def metrics(self) -> dict[str, Any]:
        """What the node has done since it was built."""
        return dict(self._transport.call("get_metrics"))

    def performance(self) -> dict[str, Any]:
        """How well agents work, what the node's machine has for tasks, and what the runs of each handler took."""
        return dict(self._transport.call("get_performance"))

    def health(self) -> Health:
        """That the process lives."""
        return Health.parse(self._transport.call("get_health"))

    def ready(self) -> Health:
        """That the node takes work and its store answers; `Unavailable` when it does not."""
        return Health.parse(self._transport.call("get_readiness", retries=0))

    def openapi(self) -> dict[str, Any]:
        """The description of the API by the server."""
        return dict(self._transport.call("get_openapi"))


class Client:
    """A client of one Pensum server.

    `url` and `token` default to PENSUM_URL (else `http://127.0.0.1:7400`) and PENSUM_TOKEN. `timeout` is for one
    request. A request without an answer is repeated up to `retries` times, about five seconds in all by default, where
    that is safe. `transport` is handed to httpx. Use it in a `with` block, or close it.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout: timedelta | float = 30.0,
        retries: int = 6,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise invalid("retries", f"must be a number, zero or more, not {retries!r}")
        self.url = base_url(url)
        self.server: EmbeddedServer | None = None
        self._transport = Transport(
            self.url, token_header(token), seconds(timeout, "timeout"), retries, transport
        )
        self.tasks = Tasks(self._transport)
        self.bulk = Bulk(self._transport, self.tasks)
        self.executions = Executions(self._transport)
        self.queues = Queues(self._transport)
        self.dead_letters = DeadLetters(self._transport, self.tasks)
        self.intake = Intake(self._transport)
        self.agents = Agents(self._transport)
        self.breakers = Breakers(self._transport)
        self.nodes = Nodes(self._transport)
        self.system = System(self._transport)
        self.create_task = self.tasks.create
        self.get_task = self.tasks.get
        self.list_tasks = self.tasks.list
        self.update_task = self.tasks.update
        self.cancel_task = self.tasks.cancel
        self.retry_task = self.tasks.retry
        self.delete_task = self.tasks.delete
        self.get_task_execution = self.executions.get
        self.add_queue = self.queues.put
        self.get_queue_statistics = self.queues.stats
        self.get_system_status = self.system.status
        self.get_system_metrics = self.system.metrics
        self.get_performance_report = self.system.performance
        self.health_check = self.system.health
        self.register_agent = self.agents.register
        self.agent = self.agents.get
        self.remove_agent = self.agents.remove
        self.drain_agent = self.agents.drain
        self.undrain_agent = self.agents.undrain
        self.leave_agent = self.agents.leave
        self.poll_agent = self.agents.poll
        self.heartbeat_agent = self.agents.heartbeat
        self.complete_executions = self.executions.complete

    @classmethod
    def embedded(
        cls,
        db: str | os.PathLike[str] = DEFAULT_DB,
        *,
        binary: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        stop_timeout: timedelta | float = DEFAULT_STOP,
        timeout: timedelta | float = 30.0,
        retries: int = 6,
    ) -> Client:
        """Starts a server of this process's own on a free port and returns a client of it; `close` stops both.

        `db` is the URL of a store or a file. The program is `binary`, else that of PENSUM_BIN, else `pensum` in PATH;
        `args` are further arguments of `pensum serve`. Raises `StartFailed`.
        """
        server = EmbeddedServer(db, binary=binary, args=args, stop_timeout=seconds(stop_timeout, "stop_timeout"))
        server.start()
        try:
            # A token of the environment is for another server.
            client = cls(server.url, token="", timeout=timeout, retries=retries)
        except BaseException:
            server.stop()
            raise
        client.server = server
        return client

    def close(self) -> None:
        """Closes the connections, and stops the server that `embedded` started."""
        self._transport.close()
        if self.server is not None:
            self.server.stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute_task(self, task: TaskRef, timeout: timedelta | float | None = None) -> bool:
        """Lets a task start now instead of at its time, waits for its end, and says whether it completed.

        What its queue allows still holds: a task of a queue that starts nothing by itself waits for `process_queue`.
        """
        found = self.tasks.get(task)
        if not found.ended and found.status != "running" and found.waiting_for != "dependencies":
            try:
                self.tasks.execute(task)
            except Conflict:
                # It may have started by itself meanwhile.
                if (self.tasks.get(task)).status == found.status:
                    raise
        return (self.tasks.wait(task, timeout)).completed

    def process_queue(self, name: str, timeout: timedelta | float | None = None) -> Queue:
        """Starts what is in a queue now, waits until all of it has ended, and returns the queue."""
        began = time.monotonic()
        waiting = [task.id for task in self.tasks.list(queue=name, status=_UNENDED)]
        self.queues.process(name)
        left = None if timeout is None else max(seconds(timeout, "timeout") - (time.monotonic() - began), 0.0)
        self.tasks.wait_all(waiting, left)
        return self.queues.get(name)

    def get_task_status(self, task: TaskRef) -> dict[str, Any] | None:
        """A task as plain JSON, its end also as `completed_at`; None where there is no such task."""
        try:
            found = self.tasks.get(task)
        except NotFound:
            return None
        return {**found.raw, "completed_at": found.raw.get("finished_at")}
