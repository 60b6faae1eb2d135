"""Agents as processes of their own, which are stopped and killed: what they ran goes on."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import pensum
import pytest
from agents import Process, until
from harness import Server, free_port

MODULE = """
import asyncio, os, sys, time
from pensum.agent import Agent, Context, task

def journal(line):
    fd = os.open(os.environ["JOURNAL"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)

@task(name=os.environ["NAME"] + ".stepwise")
def stepwise(ctx: Context):
    ctx.step("first", journal, "first")
    journal("waiting")
    if ctx.attempt == 1:
        time.sleep(60)
    ctx.step("second", journal, "second")
    return ctx.attempt

@task(name=os.environ["NAME"] + ".short")
async def short(n: int):
    await asyncio.sleep(0.05)
    journal(str(n))

@task(name=os.environ["NAME"] + ".long")
async def long(seconds: float):
    journal("long")
    await asyncio.sleep(seconds)
    return "whole"

app = Agent("unnamed", [stepwise, short, long], max_concurrent=4)
not_one = 5
"""


class Place:
    """A directory with the module, and what it wrote."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        (directory / "work.py").write_text(MODULE)
        (directory / "empty.py").write_text("")
        (directory / "broken.py").write_text("import no_such_thing\n")

    def start(self, url: str, *args: str, module: str = "work:app", id: str | None = None) -> Process:
        id = id or self.name
        return Process(
            self.directory, module, url, "--id", id, "--lease", "3", *args, NAME=self.name, JOURNAL=str(self.journal)
        )

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    def lines(self) -> list[str]:
        return self.journal.read_text().split() if self.journal.exists() else []


@pytest.fixture
def place(tmp_path: Path, name: str) -> Place:
    return Place(tmp_path, name)


def test_a_step_is_not_repeated_after_its_agent_was_killed(server: Server, api: pensum.Client, place: Place) -> None:
    made = api.tasks.create(f"{place.name}.stepwise")
    with place.start(server.url) as first:
        until(lambda: "waiting" in place.lines())
        first.kill()
    with place.start(server.url):
        ended = api.tasks.wait(made, 60)
    assert ended.completed and ended.result == 2
    assert place.lines() == ["first", "waiting", "waiting", "second"]
    assert [one.status for one in api.tasks.executions(made)] == ["crashed", "completed"]


def test_an_agent_without_an_id_has_that_of_its_environment_or_of_its_module_and_machine(
    server: Server, api: pensum.Client, place: Place
) -> None:
    machine = re.sub(r"[^A-Za-z0-9_.:/-]", "-", platform.node())
    variables = {"NAME": place.name, "JOURNAL": str(place.journal)}
    for id, target, more in [
        (f"work-{machine}", "work", {}),
        (f"{place.name}-1", "work", {"PENSUM_AGENT_ID": f"{place.name}-1"}),
        (f"{place.name}-2", "work:app", {"PENSUM_AGENT_ID": f"{place.name}-2"}),
    ]:
        with Process(place.directory, target, server.url, **variables, **more) as process:
            until(lambda: id in [one.id for one in api.agents.list()])
            process.terminate()
            assert process.wait() == 0


def test_the_tasks_of_a_killed_agent_complete_elsewhere(server: Server, api: pensum.Client, place: Place) -> None:
    with place.start(server.url, id=f"{place.name}-1") as first:
        made = [api.tasks.create(f"{place.name}.long", {"seconds": 2}) for _ in range(3)]
        until(lambda: len(place.lines()) == 3)
        first.kill()
        with place.start(server.url, id=f"{place.name}-2"):
            ended = api.tasks.wait_all(made, 60)
    assert all(one.completed and one.result == "whole" and one.retry_count == 0 for one in ended)
    for one in ended:
        executions = list(api.tasks.executions(one))
        assert executions[-1].executor_id == f"{place.name}-2"
        assert [execution.status for execution in executions[:-1]] == ["crashed"] * (len(executions) - 1)


def test_sigterm_lets_what_runs_end_and_gives_the_rest_back(server: Server, api: pensum.Client, place: Place) -> None:
    with place.start(server.url, "--grace", "2", "--max", "2") as process:
        short = api.tasks.create(f"{place.name}.long", {"seconds": 1.5})
        long = api.tasks.create(f"{place.name}.long", {"seconds": 600})
        until(lambda: len(place.lines()) == 2)
        waiting = api.tasks.create(f"{place.name}.short", {"n": 1})
        began = time.monotonic()
        process.terminate()
        assert process.wait() == 0
        assert time.monotonic() - began < 10
        assert "has left" in process.stderr and "1 tasks have not ended in time" in process.stderr
    assert api.tasks.get(short).completed
    given_back = api.tasks.get(long)
    assert not given_back.ended and given_back.retry_count == 0 and given_back.status in ("ready", "pending")
    assert api.tasks.get(waiting).status == "ready" and api.agents.get(place.name).status == "offline"
    api.tasks.cancel(long)


def test_a_second_signal_ends_it_at_once(server: Server, api: pensum.Client, place: Place) -> None:
    with place.start(server.url, "--grace", "600") as process:
        made = api.tasks.create(f"{place.name}.long", {"seconds": 600})
        until(lambda: place.lines() == ["long"])
        process.terminate()
        until(lambda: "have 600 s to end" in process.stderr)
        process.terminate()
        assert process.wait(10) == -15
    api.tasks.cancel(made)


def test_a_restart_of_the_server_loses_nothing(own_server: Server, place: Place) -> None:
    with pensum.Client(own_server.url) as client, place.start(own_server.url, "--max", "20") as process:
        batch = [pensum.NewTask(f"{place.name}.short", {"n": n}) for n in range(400)]
        ids = client.tasks.create_batch(batch)
        for end in [own_server.kill, own_server.stop]:
            before = len(place.lines())
            until(lambda: len(place.lines()) > before + 40)
            end()
            time.sleep(0.5)
            own_server.start()
        ended = client.tasks.wait_all(ids, 60)
        assert all(one.completed for one in ended)
        assert {int(line) for line in place.lines()} == set(range(400))
        said = process.stderr
        assert said.count("the server is away") == said.count("the server is back") <= 2, said
        process.terminate()
        assert process.wait() == 0


def test_exit_codes_of_the_command(server: Server, api: pensum.Client, place: Place) -> None:
    cases = [
        (["work:app", "--max", "0"], 2, "--max must be one or more"),
        (["work:nothing"], 2, "work:nothing: there is no `nothing` in `work`"),
        (["work:not_one"], 2, "work:not_one is no Agent"),
        (["no.such:app"], 2, "there is no module `no.such`"),
        (["empty"], 2, "empty has no functions with @task"),
        (["work:app", "--lease", "0.001"], 2, "lease"),
        (["work:app", "--label", "x"], 2, "NAME=VALUE"),
        (["work:app", "--resource", "cpu_cores=x"], 2, "is no number"),
        (["work:app", "--url", "ftp://x"], 2, "url"),
        (["broken"], 1, "no_such_thing"),
        (["work:app", "--url", f"http://127.0.0.1:{free_port()}"], 5, "pensum serve"),
    ]
    for arguments, code, message in cases:
        module, *rest = arguments
        with Process(place.directory, module, server.url, *rest, NAME=place.name, JOURNAL="x") as process:
            assert process.wait() == code, (arguments, process.stderr)
            assert message in process.stderr, (arguments, process.stderr)
    with place.start(server.url, "--resource", "memory_gb=4", "--label", "rack=7", "--capability", "x", module="work"):
        info = until(lambda: next((one for one in api.agents.list() if one.id == place.name), None))
    assert info.capabilities == ("x",) and info.labels == {"rack": "7"} and info.resources.memory_gb == 4
