"""Wrong arguments, unknown ids and conflicts: an exception of the right class that names the place, and no change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pensum
import pytest
from harness import Clients, Server

UNKNOWN = "0198c1f0-7f3c-7abc-8def-0123456789ab"


def check(error: type[pensum.PensumError], path: str | None, call: Callable[[], Any]) -> None:
    """The call raises just this error, which names this path."""
    with pytest.raises(pensum.PensumError) as caught:
        result = call()
        # Lists are read when they are iterated over.
        list(result)
    assert type(caught.value) is error, caught.value
    assert str(caught.value)
    if path is not None:
        assert isinstance(caught.value, pensum.Invalid)
        assert [problem.path for problem in caught.value.errors] == [path], caught.value.errors
        assert all(problem.message for problem in caught.value.errors)


TASK_METHODS = ["get", "delete", "execute", "cancel", "pause", "resume", "retry", "explain", "dependencies", "update",
                "wait", "result", "executions", "events", "logs", "follow"]  # fmt: skip


@pytest.mark.parametrize("method", TASK_METHODS)
def test_tasks_that_do_not_exist(client: Any, method: str) -> None:
    call = getattr(client.tasks, method)
    for unknown in [UNKNOWN, "no id", "a/b", "é?#%"]:
        check(pensum.NotFound, None, lambda unknown=unknown: call(unknown))
    for wrong in [None, "", 5, b"x", ["x"]]:
        check(pensum.Invalid, "task", lambda wrong=wrong: call(wrong))
    for wrong in [".", ".."]:
        check(pensum.Invalid, "id", lambda wrong=wrong: call(wrong))


def test_signals_bulk_waits_and_dead_letters_of_nothing(client: Any) -> None:
    check(pensum.NotFound, None, lambda: client.tasks.signal(UNKNOWN, "x"))
    check(pensum.NotFound, None, lambda: client.dead_letters.retry(UNKNOWN))
    check(pensum.NotFound, None, lambda: client.dead_letters.delete(UNKNOWN))
    check(pensum.NotFound, None, lambda: client.executions.get(UNKNOWN + ".1"))
    check(pensum.NotFound, None, lambda: client.executions.get("x"))
    check(pensum.Invalid, "execution", lambda: client.executions.get(None))
    check(pensum.NotFound, None, lambda: client.intake.retry(7, task={"handler": "noop"}))
    check(pensum.NotFound, None, lambda: client.intake.delete(7))
    check(pensum.Invalid, "id", lambda: client.intake.delete(None))
    check(pensum.Invalid, None, lambda: client.bulk.wait(pensum.BulkOperation(matched=3)))
    check(pensum.NotFound, None, lambda: client.tasks.wait_all([UNKNOWN], 1))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("priority", {"priority": 9}),
        ("queue", {"queue": "a b"}),
        ("timeout", {"timeout": []}),
        ("timeout", {"timeout": timedelta(seconds=-1)}),
        ("timeout", {"timeout": "soon"}),
        ("timeout", {"timeout": True}),
        ("run_at", {"run_at": datetime(2030, 1, 1)}),
        ("run_at", {"run_at": 5}),
        ("run_at", {"run_at": "tomorrow"}),
        ("retry", {"retry": 5}),
        ("retry.delay", {"retry": {"delay": object()}}),
        ("retry.factor", {"retry": pensum.RetryPolicy(factor=0.0)}),
        ("unique.ttl", {"unique": {"key": "x", "ttl": {}}}),
        ("resources.cpu_cores", {"resources": {"cpu_cores": -1}}),
        ("depends_on[1]", {"depends_on": [UNKNOWN, None]}),
        ("depends_on[0]", {"depends_on": [UNKNOWN]}),
        ("max_retries", {"max_retries": -1}),
        ("tags", {"tags": 5}),
        ("parameters", {"parameters": {"x": {1, 2}}}),
        ("metadata", {"metadata": float("nan")}),
        ("metadata", {"metadata": "\ud800"}),
        ("idempotency_key", {"idempotency_key": "é"}),
        ("idempotency_key", {"idempotency_key": 5}),
        ("Idempotency-Key", {"idempotency_key": "x" * 256}),
    ],
)
def test_wrong_fields_of_a_new_task(client: Any, name: str, path: str, fields: dict[str, Any]) -> None:
    check(pensum.Invalid, path, lambda: client.tasks.create("noop", **{"created_by": name, **fields}))
    assert list(client.tasks.list(created_by=name)) == []


def test_a_batch_with_one_wrong_item_creates_nothing(client: Any, name: str) -> None:
    good = pensum.NewTask("noop", tags=[name])
    wrong: list[tuple[str | None, Any]] = [
        ("tasks[1].priority", {"handler": "noop", "priority": 9}),
        ("tasks[1].deadline", pensum.NewTask("noop", deadline=datetime(2030, 1, 1))),
        ("tasks[1].surprise", {"handler": "noop", "surprise": 1}),
        ("tasks[1].status", {"handler": "noop", "status": "completed"}),
        ("tasks[1]", "noop"),
        (None, {"handler": "noop", "depends_on": ["nowhere"]}),
    ]
    for path, item in wrong:
        check(pensum.Invalid, path, lambda item=item: client.tasks.create_batch([good, item]))
    assert list(client.tasks.list(tag=name)) == []
    with pytest.raises(TypeError):
        client.tasks.create("noop", surprise=1)


def test_too_large_a_body_is_refused(client: Any) -> None:
    check(pensum.Invalid, None, lambda: client.tasks.create("noop", {"x": "y" * 1_100_000}))


def test_wrong_changes_filters_and_settings(client: Any, name: str) -> None:
    task = client.tasks.create("noop", delay="1h", tags=[name])
    cases: list[tuple[str | None, Callable[[], Any]]] = [
        ("priority", lambda: client.tasks.update(task, priority="most")),
        ("deadline", lambda: client.tasks.update(task, deadline=datetime(2030, 1, 1))),
        ("if_match", lambda: client.tasks.update(task, name="x", if_match="1")),
        ("if_match", lambda: client.queues.put(name, if_match=True)),
        ("max_concurrent", lambda: client.queues.put(name, max_concurrent=0)),
        ("rate_limit", lambda: client.queues.put(name, rate_limit="often")),
        ("settings", lambda: client.queues.put(name, 5)),
        ("persistent", lambda: client.queues.put(name, persistent="no")),
        ("name", lambda: client.queues.put("")),
        ("name", lambda: client.queues.get(None)),
        ("name", lambda: client.queues.delete("..")),
        ("status", lambda: client.tasks.list(status="odd")),
        ("queue", lambda: client.tasks.list(queue=object())),
        ("created_after", lambda: client.tasks.list(created_after=datetime(2030, 1, 1))),
        ("limit", lambda: client.tasks.list(limit=-1)),
        ("limit", lambda: client.queues.list(limit="5")),
        ("status", lambda: client.intake.list(status="odd")),
        ("name", lambda: client.tasks.signal(task, "")),
        ("action", lambda: client.bulk.start("explode", tag=name)),
        ("filter", lambda: client.bulk.start("cancel")),
        ("timeout", lambda: client.tasks.wait(task, timeout="1h")),
        ("timeout", lambda: client.tasks.wait(task, timeout=-1)),
        ("outage", lambda: client.tasks.wait(task, outage=None)),
        ("outage", lambda: client.tasks.follow(task, outage="x")),
        (None, lambda: client.tasks.cancel(task, "x" * 2000)),
    ]
    for path, call in cases:
        check(pensum.Invalid, path, call)
    after = client.tasks.get(task)
    assert after.version == task.version and after.status == "pending"
    check(pensum.NotFound, None, lambda: client.queues.get(name))
    check(pensum.NotFound, None, lambda: client.queues.pause(name))


def test_conflicts(client: Any, name: str) -> None:
    task = client.tasks.wait(client.tasks.create("noop", tags=[name]), 30)
    for method in ["pause", "resume", "execute", "retry", "cancel"]:
        check(pensum.Conflict, None, lambda method=method: getattr(client.tasks, method)(task))
    check(pensum.Conflict, None, lambda: client.tasks.update(task, priority="low"))
    client.tasks.create("noop", idempotency_key=name)
    check(pensum.Conflict, None, lambda: client.tasks.create("log", {"message": "x"}, idempotency_key=name))
    waiting = client.tasks.create("noop", delay="1h", queue=name)
    client.queues.put(name, auto_start=False)
    check(pensum.Conflict, None, lambda: client.queues.delete(name))
    client.queues.pause(name)
    check(pensum.Conflict, None, lambda: client.queues.process(name))
    check(pensum.VersionMismatch, None, lambda: client.queues.put(name, if_match=999))
    client.tasks.cancel(waiting)


def test_wrong_settings_of_a_client(clients: Clients, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ["127.0.0.1:7400", "localhost", "ftp://x", "", "http://", "http://x:99999", 5]:
        check(pensum.Invalid, "url", lambda url=url: clients(url))
    check(pensum.Invalid, "timeout", lambda: clients(server.url, timeout="5s"))
    check(pensum.Invalid, "retries", lambda: clients(server.url, retries=-1))
    check(pensum.Invalid, "token", lambda: clients(server.url, token="a\nb"))
    monkeypatch.setenv("PENSUM_URL", server.url + "/")
    monkeypatch.setenv("PENSUM_TOKEN", "secret")
    assert clients().system.health().status == "ok"
    assert clients().url == server.url
    closed = clients()
    closed.close()
    check(pensum.PensumError, None, closed.system.health)


def test_a_url_that_leads_elsewhere(clients: Clients, server: Server) -> None:
    elsewhere = clients(server.url + "/elsewhere")
    check(pensum.NotFound, None, lambda: elsewhere.tasks.get(UNKNOWN))
    check(pensum.NotFound, None, lambda: elsewhere.tasks.create("noop"))
