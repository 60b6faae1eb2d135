"""A server that is away, comes back, or never does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pensum
import pytest
from harness import Clients, Server, free_port


def test_nobody_listens(clients: Clients) -> None:
    client = clients(f"http://127.0.0.1:{free_port()}", retries=1)
    calls: list[Any] = [
        lambda: client.tasks.create("noop"),
        lambda: client.tasks.get("x"),
        lambda: list(client.tasks.list()),
        lambda: client.queues.put("x"),
        lambda: client.queues.delete("x"),
        lambda: client.tasks.update("x", name="y", if_match=1),
        lambda: client.system.ready(),
        lambda: client.tasks.wait("x", outage=0.1),
        lambda: list(client.tasks.follow("x", outage=0.1)),
    ]
    for call in calls:
        with pytest.raises(pensum.Unavailable, match="pensum serve"):
            call()
    with pytest.raises(pensum.WaitTimeout, match="no answer"):
        client.tasks.wait("x", timeout=0.2)


def test_a_server_that_never_answers(clients: Clients) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = clients(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, retries=1)
        began = time.monotonic()
        with pytest.raises(pensum.Unavailable, match="2 times"):
            client.system.health()
        assert time.monotonic() - began < 5


def test_a_restart_between_calls_goes_unnoticed(clients: Clients, own_server: Server) -> None:
    client = clients(own_server.url)
    task = client.tasks.create("noop", delay="1h")
    for end in [own_server.stop, own_server.kill]:
        end()
        own_server.start()
        assert client.tasks.get(task).status == "pending"
    own_server.stop()
    threading.Timer(0.8, own_server.start).start()
    assert client.tasks.create("noop").handler == "noop"


def test_a_wait_outlives_the_death_of_the_server(clients: Clients, own_server: Server) -> None:
    client = clients(own_server.url)
    task = client.tasks.create("sleep", {"seconds": 1})
    while client.tasks.get(task).status != "running":
        time.sleep(0.01)

    def die_and_return() -> None:
        own_server.kill()
        time.sleep(0.5)
        own_server.start()

    helper = threading.Timer(0.2, die_and_return)
    helper.start()
    ended = client.tasks.wait(task, timeout=60)
    helper.join()
    assert ended.completed and ended.attempt == 2
    assert [attempt.status for attempt in client.tasks.executions(task)] == ["crashed", "completed"]


def test_a_wait_for_a_server_that_stays_away_ends(clients: Clients, own_server: Server) -> None:
    client = clients(own_server.url)
    task = client.tasks.create("noop", delay="1h")
    threading.Timer(0.2, own_server.kill).start()
    with pytest.raises(pensum.Unavailable):
        client.tasks.wait(task, outage=0.6)
    with pytest.raises(pensum.WaitTimeout):
        client.tasks.wait(task, timeout=0.3)


def test_following_goes_on_after_a_restart_without_a_line_twice(clients: Clients, own_server: Server) -> None:
    client = clients(own_server.url)
    script = 'if [ "$PENSUM_ATTEMPT" = 1 ]; then echo one; echo two; sleep 60; fi; echo three'
    task = client.tasks.create("command", {"program": "sh", "args": ["-c", script]})
    seen = []

    def die_and_return() -> None:
        own_server.kill()
        own_server.start()

    for line in client.tasks.follow(task):
        seen.append(line.message)
        if line.message == "two":
            # Only lines that are on disk outlive the death; the list shows no others.
            while len(list(client.tasks.logs(task))) < 2:
                time.sleep(0.01)
            threading.Thread(target=die_and_return).start()
    assert seen == ["one", "two", "three"]
