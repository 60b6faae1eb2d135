"""Lists over many pages, and every filter."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pensum
from harness import Clients, Recorder, Server


def test_a_list_reads_all_pages_and_no_more_than_it_is_asked_for(
    clients: Clients, server: Server, name: str
) -> None:
    recorder = Recorder(clients.kind)
    client = clients(server.url, transport=recorder.transport)
    ids = client.tasks.create_batch([pensum.NewTask("noop", delay="1h", tags=[name]) for _ in range(450)])
    recorder.seen.clear()
    assert [task.id for task in client.tasks.list(tag=name)] == list(reversed(ids))
    assert len(recorder.seen) == 3
    recorder.seen.clear()
    assert [task.id for task in client.tasks.list(tag=name, limit=250)] == list(reversed(ids))[:250]
    assert len(recorder.seen) == 2 and "limit=50" in recorder.queries[-1]
    assert list(client.tasks.list(tag=name, limit=0)) == []
    recorder.seen.clear()
    some = iter(client.list_tasks(tag=name))
    assert [next(some).id for _ in range(3)] == list(reversed(ids))[:3]
    assert len(recorder.seen) == 1

    seen: list[float] = []
    operation = client.bulk.start("cancel", tag=name, status=["pending", pensum.TaskStatus.READY])
    result = client.bulk.wait(operation, 60, on_progress=lambda progress: seen.append(progress.percent))
    assert result == pensum.BulkResult(action="cancel", matched=450, done=450)
    assert seen and seen == sorted(seen) and seen[-1] == 100
    assert all(task.status == "cancelled" for task in client.tasks.list(tag=name))
    assert client.bulk.start("delete", tag=name, dry_run=True) == pensum.BulkOperation(matched=450)
    client.bulk.wait(client.bulk.start("delete", tag=name), timedelta(seconds=60))
    assert list(client.tasks.list(tag=name)) == []


def test_every_filter_finds_its_task_and_no_other(client: Any, name: str) -> None:
    other = client.tasks.create("noop", delay="1h", tags=[name])
    task = client.tasks.create(
        "sleep", {"seconds": 0}, delay="1h", tags=[name, "x"], queue=name, task_type="testing", priority=4,
        assigned_to="you", agent_id="someone", created_by="me", key=name, name="The Needle",
    )  # fmt: skip
    filters: list[dict[str, Any]] = [
        {"status": "pending", "queue": name}, {"handler": "sleep"}, {"task_type": "testing"}, {"priority": "urgent"},
        {"priority": 4}, {"priority": pensum.TaskPriority.URGENT}, {"assigned_to": "you"}, {"agent_id": "someone"},
        {"created_by": "me"}, {"key": name}, {"created_after": task.created_at}, {"q": "needle"},
    ]  # fmt: skip
    for one in filters:
        assert [found.id for found in client.tasks.list(tag=name, **one)] == [task.id], one
    assert [found.id for found in client.tasks.list(tag=name, created_before=task.created_at)] == [other.id]
    assert len(list(client.tasks.list(tag=name, dead_lettered=False))) == 2
    for none in [{"workflow_id": task.id}, {"parent_id": task.id}, {"dead_lettered": True}, {"status": ["running"]}]:
        assert list(client.tasks.list(tag=name, **none)) == [], none
    for count in [{"tag": "x", "q": "needle", "queue": name}, {"created_after": task.created_at, "tag": name}]:
        assert client.bulk.start("pause", dry_run=True, **count).matched == 1


def test_bulk_refusals_are_told(client: Any, name: str) -> None:
    client.tasks.wait(client.tasks.create("noop", tags=[name]), 30)
    result = client.bulk.wait(client.bulk.start("pause", tag=name), 30)
    assert (result.matched, result.done, result.refused) == (1, 0, 1) and isinstance(result.refusals[0], str)


def test_short_lists_have_pages_too(client: Any, name: str) -> None:
    task = client.tasks.create("command", {"program": "seq", "args": [300]})
    client.tasks.wait(task, 30)
    assert [line.message for line in client.tasks.logs(task)] == [str(number) for number in range(1, 301)]
    assert len(list(client.tasks.logs(task, limit=7))) == 7
    assert len(list(client.tasks.events(task, limit=1))) == 1
    assert [node.status for node in client.nodes.list()] == ["running"]
    assert list(client.intake.list(status="rejected")) == []
