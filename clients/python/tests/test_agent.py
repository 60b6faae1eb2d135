"""Agents against the real server: tasks end as their functions do, and nothing is lost when processes die."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Any

import pensum
import pytest
from agents import Running, agent, named, until
from harness import Server
from pensum.agent import Again, Agent, Context, NonRetryable, RetryAfter, SessionFenced, Wait


@dataclass
class Sum:
    total: int
    of: list[int]


def test_functions_run_and_their_results_are_those_of_the_tasks(
    server: Server, api: pensum.Client, name: str
) -> None:
    def add(numbers: list[int]) -> Sum:
        return Sum(sum(numbers), numbers)

    async def double(ctx: Context, number: int = 4) -> Any:
        return [number * 2, ctx.attempt, ctx.task.handler, ctx.task_id]

    one, two = named(name, add), named(name, double)
    with agent(server, name, one, two, max_concurrent=4, labels={"rack": "7"}, resources={"cpu_cores": 2}):
        added = one.enqueue(api, numbers=[1, 2])
        ids = api.tasks.create_batch([two.new_task(number=n) for n in range(30)])
        assert api.tasks.result(added, 30) == {"total": 3, "of": [1, 2]}
        results = [ended.result for ended in api.tasks.wait_all(ids, 30)]
        assert results == [[n * 2, 1, two.name, id] for n, id in enumerate(ids)]
        (execution,) = api.tasks.executions(added)
        assert (execution.executor_id, execution.status) == (name, "completed")
        info = api.agents.get(name)
        assert info.capabilities == tuple(sorted([one.name, two.name])) and info.status in ("idle", "busy")
        assert info.labels == {"rack": "7"} and info.resources and info.resources.cpu_cores == 2
        assert info.max_concurrent_tasks == 4 and info.lease.total_seconds() == 3

        async def enqueue() -> Any:
            async with pensum.AsyncClient(server.url) as client:
                made = await two.options(tags=[name], priority="high").enqueue(client, number=5)
                return await client.tasks.wait(made, 30)

        ended = asyncio.run(enqueue())
        assert (ended.result[0], ended.tags, ended.priority) == (10, (name,), "high")
    assert api.agents.get(name).status == "offline"


def test_parameters_that_do_not_fit_fail_at_once(server: Server, api: pensum.Client, name: str) -> None:
    def count(n: int) -> int:
        return n

    function = named(name, count)
    with agent(server, name, function):
        with pytest.raises(pensum.Invalid, match="parameters.n: must be a whole number"):
            function.enqueue(api, n="x")
        ended = api.tasks.wait(api.tasks.create(function.name, {"n": "x"}), 30)
    assert ended.status == "failed" and ended.attempt == 1 and ended.error
    assert ended.error.type == "invalid_parameters" and "parameters.n" in ended.error.message


def test_exceptions_decide_how_it_goes_on(server: Server, api: pensum.Client, name: str) -> None:
    class Unknown(NonRetryable): ...

    def flaky(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return ctx.attempt

    def hopeless() -> None:
        raise Unknown("no such customer")

    async def later(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise RetryAfter(0.5, "busy")
        return ctx.attempt

    async def repeats(ctx: Context) -> Any:
        at = (ctx.checkpoint or 0) + 1
        if at < 3:
            raise Again(0.01, checkpoint=at)
        return [at, ctx.attempt]

    def waits(ctx: Context) -> Any:
        if ctx.checkpoint is None:
            raise Wait(until=0.1, checkpoint="waited")
        return ctx.checkpoint

    fast = {"strategy": "fixed", "delay": 0.01}
    functions = [named(name, flaky, retry=fast), named(name, hopeless), named(name, later, retry={"delay": 60}),
                 named(name, repeats), named(name, waits)]  # fmt: skip
    with agent(server, name, *functions):
        tasks = [function.enqueue(api) for function in functions]
        flaked, failed, late, repeated, waited = api.tasks.wait_all(tasks, 30)
    assert (flaked.result, flaked.retry_count) == (3, 2)
    executions = list(api.tasks.executions(flaked))
    assert [one.status for one in executions] == ["failed", "failed", "completed"]
    assert executions[0].error and (executions[0].error.type, executions[0].error.message) == ("ValueError", "not yet")
    assert any("raise ValueError" in line.message for line in api.tasks.logs(flaked, attempt=1))
    assert (failed.status, failed.attempt) == ("failed", 1)
    assert failed.error and (failed.error.type, failed.error.message) == ("Unknown", "no such customer")
    assert late.result == 2 and late.started_at and late.created_at
    assert 0.4 < (late.started_at - late.created_at).total_seconds() < 20
    assert (repeated.result, waited.result) == ([3, 1], "waited")


def test_a_timeout_with_retries(server: Server, api: pensum.Client, name: str) -> None:
    async def patient() -> None:
        await asyncio.sleep(60)

    def stubborn(ctx: Context) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)

    settings: Any = {"timeout": 0.4, "retries": 2, "retry": {"strategy": "fixed", "delay": 0}}
    functions = [named(name, patient, **settings), named(name, stubborn, **settings)]
    with agent(server, name, *functions):
        for ended in api.tasks.wait_all([function.enqueue(api) for function in functions], 60):
            assert ended.status == "failed" and ended.error and ended.error.type == "timeout"
            assert (ended.attempt, ended.retry_count) == (3, 3)
            assert [one.error.type for one in api.tasks.executions(ended) if one.error] == ["timeout"] * 3


def test_progress_and_logs_are_seen_while_it_runs(server: Server, api: pensum.Client, name: str) -> None:
    go_on = threading.Event()

    def work(ctx: Context) -> None:
        ctx.progress(40, "loading")
        ctx.log("first")
        ctx.log("second", "stderr")
        assert go_on.wait(30)
        ctx.log("last")

    function = named(name, work)
    with agent(server, name, function):
        made = function.enqueue(api)
        began = time.monotonic()
        until(lambda: api.tasks.get(made).progress)
        assert time.monotonic() - began < 4
        progress = api.tasks.get(made).progress
        assert progress and (progress.percent, progress.message) == (40, "loading")
        until(lambda: len(list(api.tasks.logs(made))) == 2)
        assert api.agents.get(name).active_tasks == 1
        go_on.set()
        assert api.tasks.wait(made, 30).completed
    lines = [(line.stream, line.message) for line in api.tasks.logs(made)]
    assert lines == [("log", "first"), ("stderr", "second"), ("log", "last")]


def test_a_cancelled_task_stops_within_two_seconds(server: Server, api: pensum.Client, name: str) -> None:
    ended: list[str] = []

    async def patient() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("async")

    def busy(ctx: Context) -> None:
        while True:
            ctx.check()
            time.sleep(0.01)

    functions = [named(name, patient), named(name, busy)]
    with agent(server, name, *functions, lease=30):
        for function in functions:
            made = function.enqueue(api)
            until(lambda: api.tasks.get(made).status == "running")
            began = time.monotonic()
            api.tasks.cancel(made, "enough")
            assert api.tasks.wait(made, 30).status == "cancelled"
            assert time.monotonic() - began < 2.5
    assert ended == ["async"]


def test_a_preferred_agent_gets_its_tasks(server: Server, api: pensum.Client, name: str) -> None:
    async def work() -> None: ...

    function = named(name, work)
    with agent(server, f"{name}-1", function), agent(server, f"{name}-2", function):
        until(lambda: len([one for one in api.agents.list(status="idle") if one.id.startswith(name)]) == 2)
        for preferred in [f"{name}-1", f"{name}-2"] * 3:
            ended = api.tasks.wait(function.options(agent_id=preferred).enqueue(api), 30)
            assert [one.executor_id for one in api.tasks.executions(ended)] == [preferred]


def test_a_drained_agent_takes_nothing_more_and_ends_if_it_should(
    server: Server, api: pensum.Client, name: str
) -> None:
    async def work() -> None:
        await asyncio.sleep(0.1)

    function = named(name, work)
    running = Running(Agent(name, [function], url=server.url, lease=3, exit_on_drain=True))
    assert api.tasks.wait(function.enqueue(api), 30).completed
    assert api.agents.drain(name).draining
    waiting = function.enqueue(api)
    running.wait()
    assert running.error is None and not api.tasks.get(waiting).ended
    assert api.agents.undrain(name).draining is False
    with agent(server, name, function):
        assert api.tasks.wait(waiting, 30).completed
        api.agents.drain(name)
        held = function.enqueue(api)
        time.sleep(2)
        assert not api.tasks.get(held).ended
        api.agents.undrain(name)
        assert api.tasks.wait(held, 30).completed
        api.agents.remove(name)
        # A process that still runs under its id comes back.
        until(lambda: name in [one.id for one in api.agents.list()])
        assert api.tasks.wait(function.enqueue(api), 30).completed


def test_a_second_process_of_the_same_id_fences_the_first(server: Server, api: pensum.Client, name: str) -> None:
    async def work() -> None: ...

    function = named(name, work)
    first = Running(Agent(name, [function], url=server.url, lease=3))
    assert api.tasks.wait(function.enqueue(api), 30).completed
    with agent(server, name, function):
        first.wait()
        assert isinstance(first.error, SessionFenced) and name in str(first.error)
        assert api.tasks.wait(function.enqueue(api), 30).completed
