"""Answers that get lost: what is safe to repeat is repeated, and what was asked for happens once."""

from __future__ import annotations

from typing import Any

import pensum
import pytest
from harness import Clients, Proxy


def test_a_task_is_created_once_however_many_answers_are_lost(
    clients: Clients, client: Any, proxy: Proxy, name: str
) -> None:
    through = clients(proxy.url)
    proxy.lose = 3
    task = through.tasks.create("noop", tags=[name])
    assert len(proxy.passed) == 4 and proxy.lose == 0
    assert [one.id for one in client.tasks.list(tag=name)] == [task.id]
    proxy.lose = 2
    ids = through.tasks.create_batch([pensum.NewTask("noop", tags=[name]) for _ in range(3)])
    assert {one.id for one in client.tasks.list(tag=name)} == {task.id, *ids}


def test_commands_are_done_once(clients: Clients, client: Any, proxy: Proxy, name: str) -> None:
    through = clients(proxy.url)
    task = through.tasks.create("fail", {"message": "x"}, max_retries=0, tags=[name])
    through.tasks.wait(task, 30)
    proxy.lose = 1
    through.tasks.retry(task)
    assert through.tasks.wait(task, 30).attempt == 2
    assert [event.kind for event in client.tasks.events(task)].count("retried") == 1
    held = through.tasks.create("noop", delay="1h", tags=[name])
    for command in ["pause", "resume", "cancel"]:
        proxy.lose = 1
        getattr(through.tasks, command)(held)
    kinds = [event.kind for event in client.tasks.events(held)]
    assert (kinds.count("paused"), kinds.count("resumed"), kinds.count("cancelled")) == (1, 1, 1)
    waiting = through.tasks.create("noop", delay="1h", tags=[name])
    proxy.lose = 1
    through.tasks.signal(waiting, "go")
    assert [event.kind for event in client.tasks.events(waiting)].count("signalled") == 1
    proxy.lose = 1
    result = through.bulk.wait(through.bulk.start("cancel", tag=name, status="pending"), 30)
    assert result.done == 1
    assert len(list(client.tasks.list(handler="pensum.bulk", q="cancel", created_after=waiting.created_at))) == 1


def test_a_repeated_delete_succeeds(clients: Clients, client: Any, proxy: Proxy, name: str) -> None:
    through = clients(proxy.url)
    task = through.tasks.create("noop", delay="1h")
    proxy.lose = 1
    through.tasks.delete(task)
    with pytest.raises(pensum.NotFound):
        through.tasks.delete(task)
    through.queues.put(name)
    proxy.lose = 1
    through.queues.delete(name)
    with pytest.raises(pensum.NotFound):
        client.queues.get(name)


def test_a_change_of_one_version_is_not_repeated(clients: Clients, client: Any, proxy: Proxy, name: str) -> None:
    through = clients(proxy.url)
    task = through.tasks.create("noop", delay="1h")
    sent = len(proxy.passed)
    proxy.lose = 1
    with pytest.raises(pensum.Unavailable, match="may have been done"):
        through.tasks.update(task, name="new", if_match=task.version)
    assert len(proxy.passed) == sent + 1 and client.tasks.get(task).name == "new"
    proxy.lose = 1
    assert through.tasks.update(task, name="newer").name == "newer"
    proxy.lose = 1
    with pytest.raises(pensum.Unavailable, match="may have been done"):
        through.queues.put(name, max_concurrent=2, if_match=0)
    assert client.queues.get(name).settings.max_concurrent == 2
    proxy.lose = 1
    assert through.queues.put(name, max_concurrent=4).settings.max_concurrent == 4


def test_reads_waits_and_lists_go_on(clients: Clients, proxy: Proxy, name: str) -> None:
    through = clients(proxy.url)
    task = through.tasks.create("sleep", {"seconds": 0.5}, tags=[name])
    proxy.lose = 3
    assert through.tasks.wait(task, 30).completed
    proxy.lose = 1
    assert [one.id for one in through.tasks.list(tag=name)] == [task.id]


def test_repeats_have_an_end(clients: Clients, proxy: Proxy) -> None:
    through = clients(proxy.url, retries=2)
    proxy.lose = 100
    with pytest.raises(pensum.Unavailable, match="3 times"):
        through.system.status()
    assert len(proxy.passed) == 3
