"""What an agent makes of a server that is slow, silent, or takes things away; that one is not the real one."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from agents import polls, serve
from fake import Fake
from pensum.agent import Cancelled, Context, task


async def noop() -> None: ...


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split(":")[0] for record in caplog.records if "the server is" in record.getMessage()]


def test_lost_answers_run_nothing_twice_and_lose_no_result(fake: Fake) -> None:
    ran: list[int] = []

    async def count(n: int) -> int:
        ran.append(n)
        return n

    with serve(fake, count, max_concurrent=5, lease=2):
        for n in range(200):
            if n % 10 == 0:
                fake.lose = 1
                time.sleep(0.02)
            fake.add("count", {"n": n})
        fake.wait_for(lambda: len(fake.outcomes()) == 200, 60)
    assert sorted(ran) == list(range(200))
    assert sorted(outcome["done"] for outcome in fake.outcomes().values()) == list(range(200))


def test_an_outage_is_told_once_and_results_are_kept(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    started = threading.Event()

    def work() -> str:
        started.set()
        time.sleep(0.3)
        return "kept"

    with serve(fake, work):
        execution = fake.add("work")
        assert started.wait(20)
        refused: list[str] = []

        def away(route: str, body: Any) -> Any:
            refused.append(route)
            return (503, {"detail": "away", "status": 503})

        fake.before = away
        fake.wait_for(lambda: len(refused) >= 5)
        fake.before = lambda route, body: None
        fake.wait_for(lambda: execution in fake.outcomes())
        fake.wait_for(lambda: len(outages(caplog)) == 2)
    assert fake.outcomes()[execution] == {"done": "kept"}
    assert outages(caplog) == ["the server is away, trying until it is back", outages(caplog)[1]]


def test_pauses_between_tries_grow(fake: Fake) -> None:
    with serve(fake, noop):
        fake.wait_for(lambda: len(polls(fake)) == 1)
        times: list[float] = []

        def away(route: str, body: Any) -> Any:
            times.append(time.monotonic())
            return (502, None)

        fake.before = away
        fake.add("noop")  # It ends the parked poll, whose answer brings a result to be sent.
        fake.wait_for(lambda: len(times) >= 5)
        fake.before = lambda route, body: None
    gaps = [after - before for before, after in zip(times, times[1:])]
    assert len(gaps) >= 4 and gaps[-1] > 0.35 and sum(gaps) > 0.7


def test_what_comes_twice_runs_once(fake: Fake) -> None:
    ran: list[str] = []

    def work(ctx: Context) -> None:
        ran.append(ctx.execution_id)
        time.sleep(0.3)

    given: dict[str, Any] = {}

    def again(route: str, body: Any) -> Any:
        given.update(fake.held)
        if route.endswith("/poll") and body["results"]:
            # As if the answer to an earlier poll came late, with what was given, and has ended, long ago.
            return 200, {"tasks": [*given.values()], "accepted": fake._accept(body["results"]), "drain": False}
        return None

    fake.before = again
    with serve(fake, work, max_concurrent=8):
        executions = [fake.add("work") for _ in range(4)]
        fake.wait_for(lambda: len(fake.outcomes()) == 4)
        executions += [fake.add("work") for _ in range(4)]
        fake.wait_for(lambda: len(fake.outcomes()) == 8)
    assert sorted(ran) == sorted(executions) and len(given) == 8


def test_no_poll_is_sent_while_there_is_no_slot(fake: Fake) -> None:
    with serve(fake, sleep, max_concurrent=2):
        for _ in range(5):
            fake.add("sleep", {"seconds": 0.3})
        fake.wait_for(lambda: len(fake.outcomes()) == 5)
    for body in polls(fake):
        assert body["max"] + len(body["have"]) <= 2 + len(body["results"])
    assert len(polls(fake)) < 20


def test_results_do_not_wait_for_the_end_of_a_parked_poll(fake: Fake) -> None:
    with serve(fake, noop, sleep, max_concurrent=3):
        slow = fake.add("sleep", {"seconds": 0.5})
        fake.wait_for(lambda: slow in fake.held and len(polls(fake)) >= 2)
        began = time.monotonic()
        fake.wait_for(lambda: slow in fake.outcomes())
        assert time.monotonic() - began < 5


def test_a_lost_lease_abandons_the_run(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def patient(ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    def busy(ctx: Context) -> str:
        while True:
            try:
                ctx.check()
            except Cancelled:
                seen.append("checked")
                return "too late"
            time.sleep(0.01)

    with serve(fake, patient, busy, lease=1.5):
        executions = [fake.add("patient"), fake.add("busy")]
        fake.wait_for(lambda: len(fake.beats) > 0)
        fake.lost = executions
        for execution in executions:
            fake.held.pop(execution)
        fake.wait_for(lambda: sorted(seen) == ["cancelled", "checked"])
        fake.wait_for(lambda: polls(fake)[-1]["have"] == [])
    assert fake.results == []
    assert sum("lost its lease" in record.getMessage() for record in caplog.records) == 2


def test_an_execution_that_comes_again_under_another_lease_replaces_the_run(fake: Fake) -> None:
    with serve(fake, sleep, max_concurrent=2):
        execution = fake.add("sleep", {"seconds": 0.8})
        fake.wait_for(lambda: execution in fake.held)
        item = {**fake.held[execution], "lease_token": "another"}
        item["task"] = {**item["task"], "parameters": {"seconds": 0}}
        fake.waiting.append(item)
        fake.wait_for(lambda: len(fake.results) >= 1)
        time.sleep(1)
    assert {one["lease_token"] for one in fake.results} == {"another"}


def test_an_agent_that_is_not_known_any_more_registers_again(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    registered = lambda: sum(route == "/agents" for route, _ in fake.requests)  # noqa: E731
    known = [False]

    def forget(route: str, body: Any) -> Any:
        known[0] = known[0] or route == "/agents"
        return None if known[0] else (404, {"detail": "there is no agent a", "status": 404})

    with serve(fake, noop, lease=1):
        fake.wait_for(lambda: registered() == 1)
        fake.before = forget
        fake.wait_for(lambda: registered() == 2)
        execution = fake.add("noop")
        fake.wait_for(lambda: execution in fake.outcomes())
    assert any("registered again" in record.getMessage() for record in caplog.records)
