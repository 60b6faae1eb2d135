"""Agents for tests: in a thread of this process, and as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake import Fake
from harness import Server
from pensum.agent import Agent, TaskFunction, task


class Running:
    """An agent in a thread of this process."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def wait(self, seconds: float = 30) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self.agent.stop()
        self.wait()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Waits for something to be so, and answers with it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def serve(fake: Fake, *functions: Any, **named: Any) -> Running:
    """Agent `a` with these functions, at a server that is not the real one."""
    return Running(Agent("a", [task(function) for function in functions], url=fake.url, **{"grace": 2, **named}))


@contextmanager
def agent(server: Server, id: str, *functions: TaskFunction[..., Any], **named: Any) -> Iterator[Agent]:
    """An agent at the real server, in a thread of this process."""
    made = Agent(id, functions, url=server.url, **{"lease": 3, "grace": 5, **named})
    with Running(made) as running:
        yield made
    assert running.error is None, running.error


def named(name: str, function: Callable[..., Any], **settings: Any) -> TaskFunction[..., Any]:
    """A task function whose handler no other test has."""
    return task(name=f"{name}.{function.__name__}", **settings)(function)


def polls(fake: Fake) -> list[Any]:
    """What the agent sent with its polls."""
    return [body for route, body in fake.requests if route.endswith("/poll")]


class Process:
    """`pensum-agent run` of a module in a directory."""

    def __init__(self, directory: Path, module: str, url: str, *args: str, **environment: str) -> None:
        command = [sys.executable, "-m", "pensum.agent.cli", "run", module, "--url", url, *args]
        self._stderr = open(directory / f"{module.split(':')[0]}.stderr", "a+")
        self.process = subprocess.Popen(
            command, cwd=directory, stderr=self._stderr, env={**os.environ, **environment}, start_new_session=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._stderr.close()
