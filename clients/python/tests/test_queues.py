"""Queues and the system: settings there and back, commands, counts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pensum
import pytest


def test_settings_go_there_and_back(client: Any, name: str) -> None:
    queue = client.queues.put(
        name, title="Mail", max_concurrent=3, auto_start=True, persistent=True, rate_limit="100/m", priority="high",
        timeout=timedelta(minutes=2), max_retries=1, retry=pensum.RetryPolicy(strategy="fixed"), if_match=0,
        ageing=timedelta(minutes=5), fair=True, max_concurrent_per_key=2,
    )  # fmt: skip
    assert queue.id == name and queue.name == "Mail" and queue.status == "open" and queue.put_by
    assert queue.settings.rate_limit == pensum.RateLimit(starts=100, per=timedelta(minutes=1), burst=1)
    assert queue.settings.ageing == timedelta(minutes=5) and queue.settings.fair is True
    assert queue.settings.max_concurrent_per_key == 2
    assert queue.settings.timeout == timedelta(minutes=2) and queue.settings.retry.strategy == "fixed"
    changed = client.queues.put(name, queue.settings, max_concurrent=5, if_match=queue.version)
    assert changed.settings.max_concurrent == 5 and changed.version > queue.version
    assert {**changed.settings.raw, "max_concurrent": 3} == queue.settings.raw
    assert client.queues.put(name, {"timeout": timedelta(seconds=5)}).settings.timeout == timedelta(seconds=5)
    assert client.queues.get(name).settings.max_concurrent is None
    assert name in [one.id for one in client.queues.list()]
    client.queues.delete(name)
    with pytest.raises(pensum.NotFound):
        client.queues.get(name)


def test_tasks_of_a_queue_that_is_not_persistent_say_so(client: Any, name: str) -> None:
    assert client.queues.put(name, persistent=False).settings.persistent is False
    task = client.tasks.create("noop", queue=name, delay="1h")
    assert not task.durable and not client.tasks.get(task).durable
    assert client.tasks.create("noop", delay="1h", tags=[name]).durable
    client.tasks.cancel(task)


def test_a_paused_queue_waits_and_a_manual_one_is_processed(client: Any, name: str) -> None:
    client.add_queue(name, pensum.QueueSettings(max_concurrent=1))
    assert client.queues.pause(name).status == "paused"
    task = client.tasks.create("noop", queue=name)
    assert client.tasks.explain(task).gates[0].gate == "queue"
    assert client.queues.get(name).tasks["ready"] == 1 and client.queues.stats().queues[name].ready_tasks == 1
    client.queues.resume(name)
    assert client.tasks.wait(task, 30).completed
    client.queues.put(name, auto_start=False)
    more = [client.create_task("noop", queue=name) for _ in range(3)]
    done = client.process_queue(name, timeout=30)
    assert done.tasks["completed"] == 4 and done.status == "manual"
    assert all(client.tasks.get(one).completed for one in more)


def test_names_with_slashes_and_colons_are_reached(client: Any, name: str) -> None:
    odd = f"{name}/a:b.c"
    assert client.queues.put(odd).id == odd == client.queues.pause(odd).id
    client.queues.resume(odd)
    client.queues.delete(odd)


def test_the_state_of_the_system(client: Any) -> None:
    status = client.get_system_status()
    assert status.status == "running" and status["total_tasks"] == status.total_tasks
    assert status.task_counts["failed"] >= 0 and 0 <= status.performance_metrics.success_rate <= 1
    assert status.nodes[0].slots == 64 and status.nodes[0].seen_at.tzinfo is not None
    assert client.system.health().status == client.system.ready().status == "ok"
    assert client.system.openapi()["openapi"].startswith("3.1")


def test_the_short_names_mean_what_they_say(client: Any, name: str) -> None:
    first = client.create_task("noop", name="first", delay="1h")
    second = client.create_task("log", {"message": "hi"}, dependencies=[first])
    assert client.execute_task(first, timeout=30) is True
    assert client.execute_task(second.id, timeout=30) is True
    status = client.get_task_status(first)
    assert status["name"] == "first" and status["status"] == "completed" and status["completed_at"]
    assert client.get_task_status("0198c1f0-7f3c-7abc-8def-0123456789ab") is None
    assert client.get_task(second).result == "hi"
    failing = client.create_task("fail", {"message": "no"}, max_retries=0)
    assert client.execute_task(failing, 30) is False
    held = client.create_task("noop", delay="1h", tags=[name])
    assert client.cancel_task(held, "not today").status == "cancelled"
    assert [task.id for task in client.list_tasks(tag=name)] == [held.id]
    assert client.execute_task(held) is False


def test_a_full_queue_refuses_and_says_when_to_try_again(client: Any, name: str) -> None:
    client.queues.put(name, max_depth=2, max_age=timedelta(hours=1), rate_limit="1/h")
    settings = client.queues.get(name).settings
    assert (settings.max_depth, settings.max_age, settings.when_full) == (2, timedelta(hours=1), None)
    held = client.tasks.create("noop", queue=name, units=3, delay=3600)
    assert held.units == 3 and client.tasks.create("noop", queue=name, delay=3600).units == 1
    with pytest.raises(pensum.QueueFull, match="max_depth of 2") as full:
        client.tasks.create("noop", queue=name)
    assert full.value.status == 429 and full.value.retry_after is None
    client.tasks.cancel(held)
    client.queues.put(name, settings, max_depth=10, rate_limit="1/h", when_full="drop_oldest")
    client.tasks.wait(client.tasks.create("noop", queue=name))
    with pytest.raises(pensum.QueueFull, match="rate_limit") as full:
        client.tasks.create("noop", queue=name, on_limit="reject")
    assert full.value.retry_after is not None and 3000 < full.value.retry_after <= 3600
