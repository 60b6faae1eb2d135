"""`Agent`: a process that runs tasks for a server."""

from __future__ import annotations

import asyncio
import signal
import threading
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import anyio

from .._async.client import AsyncClient
from .._sync.client import Client
from ..errors import PensumError, invalid
from ..inputs import object_json
from ..models import Resources
from ..times import seconds
from .session import Session
from .task import TaskFunction

DEFAULT_LEASE = 30.0
DEFAULT_GRACE = 30.0
DEFAULT_MAX = 10
# What still runs on the event loop at the end may take so long, in seconds.
_LAST_WORDS = 1.0
_loading = threading.Lock()

Tasks = Iterable["TaskFunction[..., Any] | types.ModuleType"]


class Agent:
    """An agent: it registers at a server, and runs tasks whose handlers are its functions.

    `tasks` are functions with `@task`, or modules whose functions with it are meant. `capabilities` are the names that
    tasks may require; by default those of the functions. `max_concurrent` tasks run at once. A task whose agent dies is
    given to another after `lease`; `grace` is the time for running tasks when the agent is stopped. With
    `exit_on_drain` it ends once it was told to take nothing more and nothing runs.

    `url` and `token` are as of `Client`; instead of them an `AsyncClient` may be given, which stays open.
    """

    def __init__(
        self,
        id: str,
        tasks: Tasks = (),
        *,
        capabilities: Sequence[str] | None = None,
        max_concurrent: int = DEFAULT_MAX,
        resources: Resources | Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        lease: timedelta | float = DEFAULT_LEASE,
        grace: timedelta | float = DEFAULT_GRACE,
        exit_on_drain: bool = False,
        name: str | None = None,
        agent_type: str | None = "python",
        agent_version: str | None = None,
        url: str | None = None,
        token: str | None = None,
        client: AsyncClient | None = None,
    ) -> None:
        if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int) or max_concurrent < 1:
            raise invalid("max_concurrent", f"must be a number of tasks, one or more, not {max_concurrent!r}")
        if isinstance(capabilities, str):
            raise invalid("capabilities", "must be a list of names, not one text")
        if client is not None and not isinstance(client, AsyncClient):
            kind = "a Client" if isinstance(client, Client) else repr(client)
            raise invalid("client", f"must be an AsyncClient, not {kind}; or give `url` and `token`")
        self.id = id
        self.functions: dict[str, TaskFunction[..., Any]] = {}
        self.capabilities = None if capabilities is None else list(capabilities)
        self.max_concurrent = max_concurrent
        self.resources = resources
        self.labels = dict(labels or {})
        self.lease = seconds(lease, "lease")
        self.grace = seconds(grace, "grace")
        self.exit_on_drain = exit_on_drain
        self.name = name
        self.agent_type = agent_type
        self.agent_version = agent_version
        self.url = url
        self.token = token
        self.client = client
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked = False
        self.add(*tasks)

    def add(self, *tasks: TaskFunction[..., Any] | types.ModuleType) -> None:
        """More functions, before it runs."""
        for one in tasks:
            if isinstance(one, types.ModuleType):
                self.add(*functions_of(one))
                continue
            if not isinstance(one, TaskFunction):
                raise invalid("tasks", f"must be functions with @task, or modules that have such, not {one!r}")
            present = self.functions.setdefault(one.name, one)
            if present.__wrapped__ is not one.__wrapped__:
                raise invalid("tasks", f"two functions have the name `{one.name}`; give one of them another as `name=`")

    def registration(self) -> dict[str, Any]:
        """What it says of itself to the server. Raises `TypeError` where a function's hints have no JSON."""
        if not self.functions:
            raise invalid("tasks", "the agent has no functions; give it some that have @task")
        for function in self.functions.values():
            _ = function.signature
        said = {
            "id": self.id,
            "name": self.name,
            "agent_type": self.agent_type,
            "agent_version": self.agent_version,
            "capabilities": sorted(self.functions) if self.capabilities is None else self.capabilities,
            "max_concurrent_tasks": self.max_concurrent,
            "resources": None if self.resources is None else object_json(self.resources, "resources"),
            "labels": self.labels or None,
            "lease": self.lease,
        }
        return {name: value for name, value in said.items() if value is not None}

    async def serve(self) -> None:
        """Works until `stop` is called, or until it is drained.

        Raises `Unavailable` when the server cannot be reached at the beginning; an outage later is waited for. Raises
        `SessionFenced` when another process was started under this agent's id.
        """
        if self._session is not None:
            raise PensumError(f"agent `{self.id}` runs already")
        registration = self.registration()
        _load_asyncio()
        client = self.client or AsyncClient(self.url, token=self.token)
        self._loop = asyncio.get_running_loop()
        self._session = Session(client, registration, self.functions, self.grace, self.exit_on_drain)
        try:
            if self._stop_asked:
                self._session.stop()
            await self._session.run()
        finally:
            self._session, self._stop_asked = None, False
            if client is not self.client:
                await client.close()

    def stop(self) -> None:
        """Takes nothing more, and ends when what runs has ended or the grace time is over; from any thread.

        Before it works, the next time ends as it begins: a thread that is to run it may not have come to that yet.
        """
        self._stop_asked = True
        session, loop = self._session, self._loop
        if session is not None and loop is not None:
            try:
                loop.call_soon_threadsafe(session.stop)
            except RuntimeError:
                # The loop has ended, and the session with it.
                pass

    def run(self) -> None:
        """Works until SIGTERM or SIGINT, which stops it in order; a second one ends the process at once."""
        loop = asyncio.new_event_loop()
        try:
            with self._signals():
                loop.run_until_complete(self.serve())
        finally:
            loop.run_until_complete(_last_words(loop))
            loop.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def first(number: int, _: types.FrameType | None) -> None:
            # The next one does what it would do to any program, also when the event loop is stuck.
            for one in before:
                signal.signal(one, signal.SIG_DFL)
            self.stop()

        before = {one: signal.signal(one, first) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def _load_asyncio() -> None:
    """Has anyio, on which httpx stands, load what it needs for asyncio.

    It does that at its first use, and event loops that begin in two threads at once would meet it half loaded.
    """
    with _loading:
        anyio.get_cancelled_exc_class()


async def _last_words(loop: asyncio.AbstractEventLoop) -> None:
    """What is left on a loop is cancelled. What does not end by that must not keep the process."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for one in left:
        one.cancel()
    if left:
        await asyncio.wait(left, timeout=_LAST_WORDS)
    await loop.shutdown_asyncgens()


def functions_of(module: types.ModuleType) -> list[TaskFunction[..., Any]]:
    """The functions with `@task` in a module."""
    return [one for one in vars(module).values() if isinstance(one, TaskFunction)]
