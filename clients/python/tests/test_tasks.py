"""Tasks: every field, every command, and the records that come back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pensum
import pytest

UTC = timezone.utc


def test_a_task_runs_and_comes_back_as_a_record(client: Any) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    created = client.tasks.create("command", {"program": "echo", "args": ["5"]}, name="five", tags=["a", "b"])
    assert created.name == "five" and created.tags == ("a", "b") and created.timeout == timedelta(seconds=300)
    ended = client.tasks.wait(created, timeout=timedelta(seconds=30))
    assert ended.completed and ended.ended and ended.result == 5 and ended.status == pensum.TaskStatus.COMPLETED
    assert ended.finished_at is not None and before < ended.started_at <= ended.finished_at
    assert ended.retry == pensum.RetryPolicy(
        strategy="exponential", delay=timedelta(seconds=1), factor=2.0, max_delay=timedelta(minutes=5), jitter=True
    )
    assert ended["status"] == "completed" and ended.extra == {}
    (attempt,) = client.tasks.executions(ended)
    assert attempt.resource_usage.wall_seconds > 0 and attempt.started_at.tzinfo is not None
    assert client.executions.get(attempt) == attempt == client.executions.get(attempt.id)
    assert list(client.executions.list(task=ended)) == [attempt]
    kinds = [event.kind for event in client.tasks.events(ended)]
    assert kinds[0] == "created" and kinds[-1] == "completed"
    assert [(line.stream, line.message) for line in client.tasks.logs(ended)] == [("stdout", "5")]
    assert client.tasks.result(ended) == 5


def test_every_field_of_a_new_task_arrives(client: Any, name: str) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    first = client.tasks.create("noop", delay=timedelta(hours=1))
    task = client.tasks.create(
        "noop", {"x": [1, None, "é"]}, name="n", description="d", task_type="testing", metadata={"m": 1},
        execution_context={"c": 2}, queue=name, priority=pensum.TaskPriority.HIGH, depends_on=[first],
        on_dependency_failure="run", run_at=soon, deadline=soon + timedelta(hours=1),
        expires_at="2040-01-31T09:30:00+01:00", timeout="1h 30m", queue_timeout=timedelta(days=2),
        heartbeat_timeout=7.5, max_retries=5, retry=pensum.RetryPolicy(delay=timedelta(seconds=30), jitter=False),
        on_limit="wait", key=name, unique=pensum.Unique(key=name, ttl=timedelta(minutes=1), on_conflict="reject"),
        requires=("gpu",), agent_id="someone", resources=pensum.Resources(cpu_cores=2.0), created_by="me",
        assigned_to="you", tags={"only"},
    )  # fmt: skip
    assert task.parameters == {"x": [1, None, "é"]} and task.metadata == {"m": 1}
    assert task.execution_context == {"c": 2} and task.priority == "high" and task.queue == name
    assert task.depends_on == (first.id,) and task.on_dependency_failure == "run" and task.run_at == soon
    assert task.deadline == soon + timedelta(hours=1)
    assert task.expires_at == datetime(2040, 1, 31, 8, 30, tzinfo=UTC)
    assert task.timeout == timedelta(minutes=90) and task.queue_timeout == timedelta(days=2)
    assert task.heartbeat_timeout == timedelta(seconds=7.5) and task.max_retries == 5
    assert task.retry.delay == timedelta(seconds=30) and task.retry.jitter is False
    assert task.key == name and task.requires == ("gpu",) and task.resources == pensum.Resources(cpu_cores=2.0)
    assert (task.created_by, task.assigned_to, task.agent_id, task.tags) == ("me", "you", "someone", ("only",))
    assert task.waiting_for == "dependencies"
    relatives = client.tasks.dependencies(task)
    assert [one.id for one in relatives.depends_on] == [first.id] and relatives.dependants_total == 0
    with pytest.raises(pensum.Conflict, match=task.id):
        client.tasks.create("noop", unique=pensum.Unique(key=name, on_conflict="reject"))
    assert client.tasks.create("noop", unique=name).id == task.id
    assert client.tasks.explain(task).gates[0].gate == "dependencies"
    client.tasks.cancel(task, "no more")
    assert client.tasks.get(task).error.message == "no more"


def test_a_batch_names_its_own_items(client: Any, name: str) -> None:
    ids = client.tasks.create_batch(
        [
            pensum.NewTask("noop", ref="first", tags=[name], delay=timedelta(milliseconds=1)),
            {"handler": "log", "parameters": {"message": "hi"}, "depends_on": ["first"], "timeout": timedelta(hours=1)},
        ]
    )
    first, second = client.tasks.wait_all(ids, timeout=30)
    assert first.completed and second.result == "hi" and second.depends_on == (first.id,)
    assert second.timeout == timedelta(hours=1)


def test_changes_keep_what_is_not_given_and_none_clears(client: Any) -> None:
    task = client.tasks.create("noop", delay="1h", description="old", assigned_to="me")
    changed = client.tasks.update(
        task, description=None, priority=5, timeout=timedelta(seconds=9), tags=["x"], if_match=task.version
    )
    assert changed.description is None and changed.assigned_to == "me" and changed.priority == "critical"
    assert changed.timeout == timedelta(seconds=9) and changed.version > task.version
    with pytest.raises(pensum.VersionMismatch) as caught:
        client.tasks.update(task, name="late", if_match=task.version)
    assert caught.value.status == 412 and isinstance(caught.value, pensum.Conflict)
    at = datetime.now(UTC) + timedelta(days=1)
    moved = client.tasks.update(task, run_at=at, parameters={"y": 2}, retry={"delay": timedelta(seconds=2)})
    assert abs(moved.run_at - at) < timedelta(milliseconds=1) and moved.parameters == {"y": 2}
    assert moved.retry.delay == timedelta(seconds=2)


def test_commands_move_a_task(client: Any, name: str) -> None:
    task = client.tasks.create("noop", delay="1h", tags=[name])
    assert client.tasks.pause(task).status == "paused"
    assert client.tasks.resume(task.id).status == "pending"
    assert client.tasks.signal(task, "hello", {"a": 1}).id == task.id
    assert client.tasks.cancel(task).status == "cancelled"
    with pytest.raises(pensum.Conflict):
        client.tasks.pause(task)
    client.tasks.retry(task)
    assert client.tasks.wait(task, 30).completed
    later = client.tasks.create("noop", delay="1h")
    client.tasks.execute(later)
    assert client.tasks.wait(later, 30).completed
    client.tasks.delete(later)
    with pytest.raises(pensum.NotFound, match=later.id):
        client.tasks.get(later)


def test_a_failed_task_is_a_dead_letter(client: Any, name: str) -> None:
    task = client.tasks.create("fail", {"message": "broken"}, max_retries=0, tags=[name])
    failed = client.tasks.wait(task, 30)
    assert failed.status == "failed" and failed.ended and not failed.completed and failed.error.message == "broken"
    with pytest.raises(pensum.TaskFailed, match="broken") as caught:
        client.tasks.result(task)
    assert caught.value.task == failed
    assert [letter.id for letter in client.dead_letters.list(tag=name)] == [task.id]
    [group] = client.dead_letters.groups(tag=name).items
    assert (group.handler, group.count, group.newest) == ("fail", 1, (task.id,))
    same = client.dead_letters.list(fingerprint=group.fingerprint)
    assert task.id in [letter.id for letter in same]
    assert client.dead_letters.groups(tag=name, fingerprint="0" * 12).items == ()
    with pytest.raises(pensum.Invalid, match="fingerprint"):
        client.bulk.start("retry", fingerprint=group.fingerprint)
    matching = {"tag": name, "fingerprint": group.fingerprint, "dead_lettered": True}
    assert client.bulk.start("retry", dry_run=True, **matching).matched == 1
    client.dead_letters.retry(task)
    assert client.tasks.wait(task, 30).attempt == 2
    client.dead_letters.delete(task)
    assert list(client.dead_letters.list(tag=name)) == []


def test_following_a_log_ends_with_the_task(client: Any) -> None:
    script = "echo 'eins\u2028zwei'; sleep 0.2; echo drei >&2; sleep 0.2; echo vier"
    task = client.tasks.create("command", {"program": "sh", "args": ["-c", script]})
    lines = list(client.tasks.follow(task))
    assert [line.message for line in lines] == ["eins\u2028zwei", "drei", "vier"]
    assert client.tasks.get(task).ended
    assert [line.message for line in client.tasks.follow(task, after=lines[0].seq)] == ["drei", "vier"]
    assert list(client.tasks.logs(task, after=lines[1].seq, attempt=1)) == lines[2:]
    assert list(client.tasks.logs(task, attempt=2)) == []


def test_waiting_ends_in_time_and_says_what_it_saw(client: Any) -> None:
    task = client.tasks.create("sleep", {"seconds": 60})
    with pytest.raises(pensum.WaitTimeout, match="explain") as caught:
        client.tasks.wait(task, timeout=0.3)
    assert isinstance(caught.value, TimeoutError) and caught.value.task.id == task.id
    with pytest.raises(pensum.WaitTimeout):
        client.tasks.wait_all([task, task], timeout=timedelta(milliseconds=100))
    client.tasks.cancel(task, "enough")
    seen: list[str] = []
    assert client.tasks.wait(task, 30, on_change=lambda one: seen.append(one.status)).status == "cancelled"
    assert seen[-1] == "cancelled"
