"""The client has the whole API, as the running server describes it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pensum
import pytest
from harness import Clients, Recorder, Server
from pensum.operations import OPERATIONS

METHODS = ("get", "post", "put", "patch", "delete")


def described(client: Any) -> dict[str, tuple[str, str]]:
    paths = client.system.openapi()["paths"]
    return {
        entry["operationId"]: (method.upper(), path)
        for path, entries in paths.items()
        for method, entry in entries.items()
        if method in METHODS
    }


def parameters(client: Any, operation: str) -> set[str]:
    method, path = OPERATIONS[operation]
    entry = client.system.openapi()["paths"][path][method.lower()]
    return {one["name"] for one in entry.get("parameters", []) if one["in"] == "query"}


def test_the_client_knows_every_route_and_no_other(client: Any) -> None:
    assert OPERATIONS == described(client)


def test_every_route_is_reached_by_a_method(clients: Clients, server: Server, name: str) -> None:
    recorder = Recorder(clients.kind)
    client = clients(server.url, transport=recorder.transport)

    def missing(call: Any, *args: Any) -> None:
        with pytest.raises(pensum.NotFound):
            call(*args)

    task = client.tasks.create("noop", tags=[name])
    client.tasks.wait(task, 30)
    (later,) = client.tasks.create_batch([pensum.NewTask("noop", delay="1h")])
    list(client.tasks.list(tag=name))
    client.tasks.get(task)
    client.tasks.update(task, description="done")
    client.tasks.pause(later)
    client.tasks.resume(later)
    client.tasks.signal(later, "go")
    client.tasks.cancel(later)
    client.tasks.retry(later)
    client.tasks.execute(client.tasks.create("noop", delay="1h"))
    list(client.tasks.executions(task))
    list(client.tasks.events(task))
    list(client.tasks.logs(task))
    client.tasks.explain(task)
    client.tasks.dependencies(task)
    client.tasks.delete(task)
    client.bulk.start("cancel", tag=name)
    list(client.executions.list(limit=1))
    missing(client.executions.get, f"{task.id}.1")
    client.queues.put(name)
    client.queues.get(name)
    list(client.queues.list())
    client.queues.stats()
    client.queues.pause(name)
    client.queues.resume(name)
    client.queues.process(name)
    client.queues.delete(name)
    list(client.dead_letters.list())
    client.dead_letters.groups()
    list(client.intake.list())
    missing(client.intake.retry, 1)
    missing(client.intake.delete, 1)
    agent = client.agents.register(name, [name])
    client.agents.get(agent)
    list(client.agents.list(status="idle", capability=name))
    client.agents.poll(agent, "s")
    client.agents.heartbeat(agent, [], session="s")
    assert client.executions.complete([]) == ()
    client.agents.drain(agent)
    client.agents.undrain(agent)
    client.agents.leave(agent, "s")
    client.agents.remove(agent)
    breaker = f"handler:{name}"
    settings = client.breakers.put(breaker, failures=3, window="1m").settings
    assert client.breakers.put(breaker, settings, open_for=5, if_match=1).settings.failures == 3
    assert client.breakers.trip(breaker).state == "open" and client.breakers.get(breaker).opened_at
    assert client.breakers.reset(breaker).state == "closed"
    assert breaker in [one.id for one in client.breakers.list()]
    client.breakers.delete(breaker)
    list(client.nodes.list())
    client.system.status()
    assert client.system.metrics()["slots"] > 0
    assert client.system.performance()["resource_metrics"]["limits"]
    client.system.health()
    client.system.ready()
    wanted = described(client)

    patterns = {
        name: (method, re.compile(re.sub(r"{\w+}", "[^/]+", path) + "$")) for name, (method, path) in wanted.items()
    }
    unreached = [
        name
        for name, (method, path) in patterns.items()
        if not any(method == sent and path.match(where) for sent, where in recorder.seen)
    ]
    assert unreached == []


def arguments(method: Any) -> set[str]:
    return set(inspect.signature(method).parameters) - {"self"}


def test_lists_take_every_filter(client: Any) -> None:
    # `cursor` is how the client goes from page to page.
    paging = {"cursor"}
    assert arguments(list_of("Tasks")) == (
        parameters(client, "list_tasks") - paging
    )
    # What is not in the dead-letter queue is not in its list.
    assert arguments(list_of("DeadLetters")) == parameters(client, "list_dead_letters") - paging - {"dead_lettered"}
    assert arguments(list_of("Executions")) == {"task", "limit"}
    assert parameters(client, "list_executions") == {"task_id", "limit", "cursor"}
    assert arguments(list_of("Intake")) == parameters(client, "list_intake") - paging
    assert arguments(list_of("Agents")) == parameters(client, "list_agents") - paging
    assert parameters(client, "read_logs") == {"after", "attempt", "follow", "limit", "cursor"}


def list_of(kind: str) -> Any:
    from pensum._sync import agents, queues, tasks

    module = {"Tasks": tasks, "Agents": agents}.get(kind, queues)
    return getattr(module, kind).list


def test_inputs_and_records_have_every_field(client: Any) -> None:
    schemas = client.system.openapi()["components"]["schemas"]

    def properties(schema: str) -> set[str]:
        entry = schemas[schema]
        parts = entry.get("allOf", [entry])
        own = {field for part in parts for field in part.get("properties", {})}
        for part in parts:
            if "$ref" in part:
                own |= properties(part["$ref"].rsplit("/", 1)[1])
        return own

    def fields(kind: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(kind)} - {"raw", "_"}

    from pensum._sync.bulk import Bulk
    from pensum._sync.queues import Queues
    from pensum._sync.tasks import Tasks

    new = properties("TaskInput")
    assert fields(pensum.NewTask) == new
    assert arguments(Tasks.create) == (new - {"ref"}) | {"dependencies", "idempotency_key"}
    assert arguments(Tasks.update) == properties("Patch") | {"task", "if_match"}
    assert arguments(Bulk.start) - {"idempotency_key"} == properties("BulkFilter") | {"action", "all", "dry_run"}
    settings = properties("QueueInput")
    assert fields(pensum.QueueSettings) == settings
    assert arguments(Queues.put) == (settings - {"name"}) | {"title", "name", "settings", "if_match"}
    assert fields(pensum.Unique) == properties("UniqueInput")
    records = {
        "TaskView": pensum.Task, "ExecutionView": pensum.Execution, "Usage": pensum.Usage, "EventView": pensum.Event,
        "LogView": pensum.LogLine, "Explanation": pensum.Explanation, "Gate": pensum.Gate,
        "Dependencies": pensum.Dependencies, "Relative": pensum.Relative, "BulkStarted": pensum.BulkOperation,
        "QueueView": pensum.Queue, "RateInput": pensum.RateLimit, "AllQueueStats": pensum.AllQueueStats,
        "DeadLetterGroup": pensum.DeadLetterGroup, "DeadLetterGroups": pensum.DeadLetterGroups,
        "NodeRecord": pensum.Node, "IntakeRecord": pensum.IntakeRow, "IntakeRetried": pensum.IntakeRetried,
        "Health": pensum.Health, "PerformanceMetrics": pensum.PerformanceMetrics, "Progress": pensum.Progress,
        "PersistenceStats": pensum.PersistenceStats, "ErrorInfo": pensum.ErrorInfo, "Resources": pensum.Resources,
        "AgentHealth": pensum.AgentStatus, "SystemStatus": pensum.SystemStatus,
        "AgentView": pensum.AgentInfo, "BreakerView": pensum.Breaker, "BreakerInput": pensum.BreakerSettings,
    }  # fmt: skip
    for schema, kind in records.items():
        assert fields(kind) == properties(schema), schema
    assert {one.value for one in pensum.TaskStatus} == set(schemas["Status"]["enum"])
    assert {one.value for one in pensum.TaskPriority} == set(schemas["Priority"]["enum"])


def test_the_synchronous_client_is_made_from_the_asynchronous_one() -> None:
    tool = Path(__file__).parents[1] / "tools" / "make_sync.py"
    ended = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
