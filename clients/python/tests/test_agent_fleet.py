"""Sixteen agents of four kinds, one of which is killed every second: every task completes, on an agent that may run it,
and no agent runs more than it said it could."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pensum
from agents import Process
from harness import Server

KINDS = [["a"], ["a", "b"], ["b", "c"], ["c"]]
# What tasks require; each is offered by at least one kind.
NEEDS = [["a"], ["b"], ["c"], ["a", "b"], ["b", "c"]]
MAX = 4
OFFERED = {"cpu_cores": 2.0, "memory_gb": 4.0}
DEMANDS: list[dict[str, float]] = [{"cpu_cores": 1}, {"cpu_cores": 0.5, "memory_gb": 1}, {"memory_gb": 3}]
TASKS = 5000
LEASE = 3

MODULE = """
import asyncio, json, os, time
from pensum.agent import Agent, Context, task

fd = os.open(os.environ["JOURNAL"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)

def journal(what, ctx):
    line = [what, time.monotonic(), os.environ["AGENT"], os.getpid(), ctx.execution_id, ctx.parameters["n"]]
    os.write(fd, (json.dumps(line) + "\\n").encode())

@task
async def work(ctx: Context, n: int, seconds: float) -> str:
    journal("start", ctx)
    try:
        await asyncio.sleep(seconds)
    finally:
        journal("end", ctx)
    return os.environ["AGENT"]
"""


class Fleet:
    """The processes, each with its agent's id; one that is killed is started again under the same id."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.kinds = {f"agent-{n}": KINDS[n % len(KINDS)] for n in range(16)}
        self.killed: dict[int, float] = {}
        (directory / "fleet.py").write_text(MODULE)
        self.running = {id: self._start(id) for id in self.kinds}

    def _start(self, id: str) -> Process:
        arguments = ["--id", id, "--max", str(MAX), "--lease", str(LEASE)]
        for capability in self.kinds[id]:
            arguments += ["--capability", capability]
        for resource, amount in OFFERED.items():
            arguments += ["--resource", f"{resource}={amount}"]
        journal = str(self.directory / "journal")
        return Process(self.directory, "fleet", self.url, *arguments, AGENT=id, JOURNAL=journal)

    def kill_one(self, id: str) -> None:
        process = self.running[id]
        process.kill()
        self.killed[process.process.pid] = time.monotonic()
        self.running[id] = self._start(id)

    def close(self) -> list[int]:
        for process in self.running.values():
            process.terminate()
        return [process.wait() for process in self.running.values()]


def journal(directory: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (directory / "journal").read_text().splitlines()]


def runs_of(lines: list[list[Any]], killed: dict[int, float]) -> dict[str, list[tuple[float, float, int]]]:
    """What each agent ran: from, until, which task. What a killed process did not end was ended by its death."""
    open_runs: dict[tuple[int, str], list[tuple[float, str, int]]] = defaultdict(list)
    runs: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for what, at, agent, pid, execution, n in lines:
        if what == "start":
            open_runs[pid, execution].append((at, agent, n))
        else:
            began, agent, n = open_runs[pid, execution].pop(0)
            runs[agent].append((began, at, n))
    for (pid, _), left in open_runs.items():
        for began, agent, n in left:
            runs[agent].append((began, killed[pid], n))
    return runs


def most_at_once(runs: list[tuple[float, float, float]]) -> float:
    """The highest sum of the amounts of runs that overlap; what ends when another begins does not overlap it."""
    changes = sorted([(until, -amount) for _, until, amount in runs] + [(since, amount) for since, _, amount in runs])
    level = highest = 0.0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    return highest


def test_a_fleet_that_is_killed_one_by_one_completes_everything_within_its_bounds(
    own_server: Server, tmp_path: Path
) -> None:
    draw = random.Random(20240607)
    needs = [draw.choice(NEEDS) for _ in range(TASKS)]
    demands = [draw.choice(DEMANDS) if draw.random() < 0.3 else {} for _ in range(TASKS)]
    with pensum.Client(own_server.url) as client:
        fleet = Fleet(tmp_path, own_server.url)
        batch = [
            pensum.NewTask(
                "work", {"n": n, "seconds": draw.random() * 0.3}, requires=needs[n], resources=demands[n] or None
            )
            for n in range(TASKS)
        ]
        ids = client.tasks.create_batch(batch)
        began = time.monotonic()
        stats = client.queues.stats()
        while stats.completed_tasks < TASKS:
            assert time.monotonic() - began < 180, stats
            assert stats.failed_tasks == 0
            fleet.kill_one(draw.choice(list(fleet.running)))
            time.sleep(1)
            stats = client.queues.stats()
        assert fleet.close() == [0] * 16
        print(f"{TASKS} tasks in {time.monotonic() - began:.1f} s, {len(fleet.killed)} agents killed")
        executions = list(client.executions.list())
        numbers = {id: n for n, id in enumerate(ids)}

    assert len(fleet.killed) >= 5
    completed = Counter(one.task_id for one in executions if one.status == "completed")
    assert completed == Counter(ids)
    others = Counter(one.status for one in executions if one.status != "completed")
    print(dict(others))
    assert set(others) <= {"crashed"}
    for one in executions:
        assert set(needs[numbers[one.task_id]]) <= set(fleet.kinds[one.executor_id]), one
    ran = runs_of(journal(tmp_path), fleet.killed)
    assert {n for runs in ran.values() for _, _, n in runs} == set(range(TASKS))
    for agent, runs in ran.items():
        assert all(set(needs[n]) <= set(fleet.kinds[agent]) for _, _, n in runs)
        assert most_at_once([(since, until, 1) for since, until, _ in runs]) <= MAX, agent
        for resource, offered in OFFERED.items():
            used = [(since, until, demands[n].get(resource, 0.0)) for since, until, n in runs]
            assert most_at_once(used) <= offered, (agent, resource)
    assert max(most_at_once([(since, until, 1) for since, until, _ in runs]) for runs in ran.values()) == MAX
