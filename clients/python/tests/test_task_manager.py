"""A task manager of queues, priorities and agents, as its programs use it: what starts when, by the times of the
executions as the server recorded them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pensum
from agents import agent, named, until
from harness import Server
from pensum import Client, Execution, NewTask, TaskPriority
from pensum.agent import Context

WAIT = 60


def last(api: Client, tasks: Sequence[Any]) -> list[Execution]:
    """The last execution of each task, once all have ended."""
    api.tasks.wait_all(tasks, WAIT)
    return [list(api.tasks.executions(one))[-1] for one in tasks]


def most_at_once(executions: Sequence[Execution]) -> int:
    """The most executions at one moment; what ends when another starts has made room for it."""
    changes: list[tuple[datetime, int]] = []
    for one in executions:
        assert one.finished_at
        changes += [(one.started_at, 1), (one.finished_at, -1)]
    level = highest = 0
    for _, change in sorted(changes):
        level += change
        highest = max(highest, level)
    return highest


def test_a_task_is_created_executed_and_looked_at(server: Server, api: Client, name: str) -> None:
    def consolidate(depth: int) -> str:
        if depth < 1:
            raise ValueError("too shallow")
        return f"{depth} levels deep"

    api.add_queue(name, auto_start=False)
    function = named(name, consolidate, retries=1, retry={"strategy": "fixed", "delay": 0.05})
    with agent(server, name, function):
        good = function.options(delay="1h").enqueue(api, depth=3)
        before = api.get_task_status(good)
        assert before and before["status"] == "pending" and before["completed_at"] is None
        assert api.execute_task(good, WAIT)
        after = api.get_task_status(good)
        assert after and (after["status"], after["result"]) == ("completed", "3 levels deep")
        assert after["completed_at"] >= after["started_at"]
        bad = function.options(queue=name).enqueue(api, depth=0)
        # The queue is started by hand once, for the first try and for the other.
        api.process_queue(name, WAIT)
        failed = api.get_task_status(bad)
    assert failed and (failed["status"], failed["error"]["message"]) == ("failed", "too shallow")
    assert failed["retry_count"] == 2 and failed["completed_at"]
    assert api.get_task_status("0197-no-such-task") is None


def test_the_most_urgent_of_a_paused_queue_starts_first(server: Server, api: Client, name: str) -> None:
    def errand() -> None: ...

    function = named(name, errand)
    api.add_queue(name, max_concurrent=1)
    api.queues.pause(name)
    urgencies = [TaskPriority.LOW, TaskPriority.NORMAL, TaskPriority.HIGH, TaskPriority.CRITICAL]
    with agent(server, name, function, max_concurrent=4):
        tasks = [api.create_task(function.name, queue=name, priority=urgency) for urgency in urgencies]
        time.sleep(0.3)
        assert api.queues.get(name).tasks["ready"] == 4
        api.queues.resume(name)
        executions = last(api, tasks)
    assert most_at_once(executions) == 1
    starts = {one.started_at: urgency for one, urgency in zip(executions, urgencies)}
    assert [starts[at] for at in sorted(starts)] == urgencies[::-1]


def test_ten_tasks_in_a_queue_three_wide_never_exceed_three(server: Server, api: Client, name: str) -> None:
    def validate(module: str) -> str:
        time.sleep(0.15)
        return module

    function = named(name, validate, queue=name)
    api.add_queue(name, max_concurrent=3)
    api.queues.pause(name)
    with agent(server, name, function, max_concurrent=10):
        modules = [f"module_{number}.py" for number in range(1, 11)]
        tasks = api.tasks.create_batch([function.new_task(module=module) for module in modules])
        api.queues.resume(name)
        executions = last(api, tasks)
    assert [one.result for one in executions] == modules
    assert most_at_once(executions) == 3


def test_queues_are_as_wide_as_each_says_and_one_of_them_waits_to_be_started(
    server: Server, api: Client, name: str
) -> None:
    def work() -> None:
        time.sleep(0.1)

    function = named(name, work)
    widths = {"symbols": 3, "design": 2, "messages": 5, "files": 4, "sync": 2}
    with agent(server, name, function, max_concurrent=20):
        tasks: dict[str, list[str]] = {}
        for queue, width in widths.items():
            api.add_queue(f"{name}-{queue}", title=queue, max_concurrent=width, auto_start=queue != "sync")
            new = function.options(queue=f"{name}-{queue}").new_task()
            tasks[queue] = api.tasks.create_batch([new] * 12)
        by_itself = [queue for queue in widths if queue != "sync"]
        executions = {queue: last(api, tasks[queue]) for queue in by_itself}
        assert api.queues.get(f"{name}-sync").tasks["ready"] == 12
        assert not [one for task in tasks["sync"] for one in api.tasks.executions(task)]
        asked = datetime.now().astimezone()
        api.process_queue(f"{name}-sync", WAIT)
        executions["sync"] = last(api, tasks["sync"])
    assert all(one.started_at >= asked - timedelta(milliseconds=5) for one in executions["sync"])
    for queue, width in widths.items():
        assert most_at_once(executions[queue]) <= width, queue


def test_a_task_runs_on_the_agent_it_prefers_and_elsewhere_when_that_is_gone(
    server: Server, api: Client, name: str
) -> None:
    def synchronize(ctx: Context, file: str) -> str:
        time.sleep(0.3)
        return file

    function = named(name, synchronize)
    preferred, other = f"{name}-designer", f"{name}-helper"
    with agent(server, other, function, max_concurrent=8):
        with agent(server, preferred, function, max_concurrent=1):
            found = until(lambda: [one for one in api.agents.list(status="idle") if one.id == preferred])
            assert found[0].active_tasks == 0
            wished = function.options(agent_id=preferred)
            tasks = [wished.enqueue(api, file=f"file-{number}") for number in range(3)]
            until(lambda: api.agents.get(preferred).active_tasks == 1)
            assert api.agents.get(preferred).status == "busy"
            executions = last(api, tasks)
            assert {one.executor_id for one in executions} == {preferred}
            assert most_at_once(executions) == 1
            until(lambda: api.agents.get(preferred).active_tasks == 0)
        (alone,) = last(api, [wished.enqueue(api, file="late")])
        assert alone.executor_id == other


def test_five_stages_start_one_after_the_other_by_their_dependencies(
    server: Server, api: Client, name: str
) -> None:
    def stage(number: int) -> int:
        time.sleep(0.05)
        return number

    function = named(name, stage)
    urgencies = [TaskPriority.HIGH, TaskPriority.HIGH, TaskPriority.NORMAL, TaskPriority.NORMAL, TaskPriority.LOW]
    with agent(server, name, function, max_concurrent=5):
        before: list[str] = []
        for number, urgency in enumerate(urgencies):
            wishes = function.options(priority=urgency, depends_on=before[-1:] or None)
            before.append(wishes.enqueue(api, number=number).id)
        executions = last(api, before)
    assert [one.result for one in executions] == list(range(5))
    for one, following in zip(executions, executions[1:]):
        assert one.finished_at and one.finished_at <= following.started_at


def test_a_chain_starts_in_its_order_whichever_of_it_is_submitted_first(
    server: Server, api: Client, name: str
) -> None:
    def work() -> None:
        time.sleep(0.05)

    function = named(name, work)
    with agent(server, name, function, max_concurrent=4):
        chain = ["initialize", "load", "process", "report"]
        batch = [
            NewTask(function.name, ref=ref, depends_on=[chain[number - 1]] if number else None)
            for number, ref in enumerate(chain)
        ]
        executions = last(api, api.tasks.create_batch(batch[::-1]))[::-1]
    for one, following in zip(executions, executions[1:]):
        assert one.finished_at and one.finished_at <= following.started_at


def test_modules_are_checked_beside_each_other_and_what_is_wrong_is_reported(
    server: Server, api: Client, name: str
) -> None:
    def check(path: str, strict: bool = True) -> str:
        time.sleep(0.2)
        if strict and "dream" in path:
            raise ValueError(f"{path} is not whole")
        return "whole"

    function = named(name, check, queue=name, priority=TaskPriority.HIGH, retries=0)
    paths = ["core/", "dream/", "reflection/", "engine/"]
    api.add_queue(name, max_concurrent=3)
    with agent(server, name, function, max_concurrent=4):
        tasks = [function.enqueue(api, path=path) for path in paths]
        api.process_queue(name, WAIT)
        executions = last(api, tasks)
        report = {path: api.get_task(task) for path, task in zip(paths, tasks)}
    assert {path for path, task in report.items() if task.completed} == {"core/", "reflection/", "engine/"}
    error = report["dream/"].error
    assert error and error.message == "dream/ is not whole" and error.type == "ValueError"
    assert 2 <= most_at_once(executions) <= 3


def test_an_agent_takes_as_many_at_once_as_it_said_in_a_wider_queue(
    server: Server, api: Client, name: str
) -> None:
    async def think(prompt: str) -> str:
        await asyncio.sleep(0.2)
        return prompt.upper()

    function = named(name, think, queue=name)
    api.add_queue(name, title="Thoughts", max_concurrent=10)
    api.queues.pause(name)
    with agent(server, name, function, max_concurrent=5):
        prompts = [f"thought {number}" for number in range(15)]
        tasks = api.tasks.create_batch([function.new_task(prompt=prompt) for prompt in prompts])
        api.queues.resume(name)
        executions = last(api, tasks)
    assert [one.result for one in executions] == [prompt.upper() for prompt in prompts]
    assert most_at_once(executions) == 5


def test_work_that_is_to_be_done_at_intervals_starts_at_its_times(server: Server, api: Client, name: str) -> None:
    def consolidate(round: int) -> int:
        return round

    function = named(name, consolidate, priority=TaskPriority.LOW)
    first = datetime.now().astimezone() + timedelta(seconds=0.5)
    times = [first + number * timedelta(seconds=1) for number in range(3)]
    with agent(server, name, function):
        tasks = [function.options(run_at=at).enqueue(api, round=number) for number, at in enumerate(times)]
        executions = last(api, tasks)
    assert [one.result for one in executions] == [0, 1, 2]
    late = [one.started_at - at for one, at in zip(executions, times)]
    assert min(late) >= timedelta(0) and max(late) < timedelta(seconds=1), late


def test_what_takes_longer_than_it_may_is_tried_again_and_fails(server: Server, api: Client, name: str) -> None:
    async def endless() -> None:
        await asyncio.sleep(WAIT)

    function = named(name, endless, timeout=0.4, retries=2, retry={"strategy": "fixed", "delay": 0.2, "jitter": False})
    with agent(server, name, function):
        task = function.enqueue(api)
        assert not api.execute_task(task, WAIT)
        executions = list(api.tasks.executions(task))
    ended = api.get_task(task)
    assert ended.error and ended.error.type == "timeout" and ended.retry_count == 3
    assert [one.attempt for one in executions] == [1, 2, 3]
    for one, following in zip(executions, executions[1:]):
        assert one.finished_at and one.finished_at - one.started_at >= timedelta(seconds=0.4)
        assert following.started_at - one.finished_at >= timedelta(seconds=0.2)


def test_a_breaker_keeps_tasks_waiting_and_lets_one_try(server: Server, api: Client, name: str) -> None:
    broken = True

    def call() -> str:
        if broken:
            raise ConnectionError("no answer")
        return "answered"

    function = named(name, call, retries=0)
    rest = timedelta(seconds=1)
    api.breakers.put(name, handlers=[function.name], failures=3, window=60, open_for=rest, probes=1)
    with agent(server, name, function, max_concurrent=1):
        for _ in range(3):
            assert not api.execute_task(function.enqueue(api), WAIT)
        opened = until(lambda: (found := api.breakers.get(name)).state == "open" and found)
        tasks = [function.enqueue(api) for _ in range(4)]
        told = api.tasks.explain(tasks[0])
        assert [gate.gate for gate in told.gates] == ["breaker"], told
        broken = False
        executions = last(api, tasks)
        assert [one.result for one in executions] == ["answered"] * 4
        assert api.breakers.get(name).state == "closed"
    starts = sorted(executions, key=lambda one: one.started_at)
    assert opened.opened_at and starts[0].started_at >= opened.opened_at + rest
    # The others wait until the first has shown that it works again.
    assert starts[0].finished_at and starts[1].started_at >= starts[0].finished_at


def test_a_rate_is_kept_to_over_any_span(server: Server, api: Client, name: str) -> None:
    def send() -> None: ...

    rate, burst = 10, 5
    function = named(name, send, queue=name)
    api.add_queue(name, rate_limit=pensum.RateLimit(starts=rate, burst=burst))
    with agent(server, name, function, max_concurrent=8):
        executions = last(api, api.tasks.create_batch([function.new_task()] * 25))
    starts = sorted(one.started_at for one in executions)
    for first, since in enumerate(starts):
        for number, until_then in enumerate(starts[first:], 1):
            assert number <= 1 + burst + rate * (until_then - since).total_seconds()
    assert starts[-1] - starts[0] >= timedelta(seconds=(25 - burst - 1) / rate)


def test_the_state_of_everything_is_told_in_one_place(own_server: Server) -> None:
    with pensum.Client(own_server.url) as api:
        api.add_queue("files", title="Files", max_concurrent=4)
        api.register_agent("processor", ["cleanup"], max_concurrent_tasks=2)
        done = api.create_task("noop", queue="files")
        api.tasks.wait(done, WAIT)
        waits = api.create_task("cleanup", queue="files")
        status = api.get_system_status()
        stats = api.queues.stats()
        (processor,) = api.agents.list()
        assert status.total_tasks == 2 and status.task_counts["completed"] == 1 and status.active_queues == 1
        assert stats.completed_tasks == 1 and stats.failed_tasks == 0 and api.get_queue_statistics() == stats
        seen = status.agent_status["processor"]
        assert status.registered_agents == 1 and status.performance_metrics.overall_health == 1.0
        assert (seen.name, seen.status, seen.active_tasks, seen.health_score) == ("processor", "idle", 0, 1.0)
        assert (processor.status, processor.active_tasks, processor.max_concurrent_tasks) == ("idle", 0, 2)
        api.cancel_task(waits)
        assert api.get_system_status().task_counts["cancelled"] == 1
