"""How runs and agents end, seen by a server that is not the real one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pensum
import pytest
from agents import Running, polls, serve
from fake import Fake
from pensum.agent import Agent, Context, Paused, SessionFenced, task


async def noop() -> None: ...


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_a_fenced_session_stops_with_a_clear_message(fake: Fake) -> None:
    fence = {"type": "urn:pensum:problem:session_fenced", "detail": "a newer session has taken over", "status": 409}
    running = serve(fake, sleep)
    fake.add("sleep", {"seconds": 60})
    fake.wait_for(lambda: len(fake.held) == 1)
    fake.before = lambda route, body: (409, fence)
    running.wait()
    assert isinstance(running.error, SessionFenced) and "`a` was started elsewhere" in str(running.error)
    assert fake.results == []


def test_a_timeout_ends_an_asynchronous_function_and_leaves_a_thread(fake: Fake) -> None:
    seen: list[str] = []

    async def patient() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("async")

    def stubborn(ctx: Context) -> None:
        while not ctx.cancelled:
            time.sleep(0.01)
        seen.append("thread")

    with serve(fake, patient, stubborn, noop, max_concurrent=1):
        executions = [fake.add("patient", timeout=0.2), fake.add("stubborn", timeout=0.2), fake.add("noop")]
        fake.wait_for(lambda: len(fake.outcomes()) == 3)
        fake.wait_for(lambda: len(seen) == 2)
    for execution in executions[:2]:
        assert fake.outcomes()[execution]["retry"]["type"] == "timeout"
    assert fake.outcomes()[executions[2]] == {"done": None}


def test_a_function_that_is_cancelled_and_one_that_pauses(fake: Fake) -> None:
    def pauses(ctx: Context) -> None:
        while not ctx.pausing:
            time.sleep(0.01)
        raise Paused({"at": 5})

    with serve(fake, sleep, pauses, lease=1):
        cancelled = fake.add("sleep", {"seconds": 60})
        paused = fake.add("pauses")
        fake.wait_for(lambda: len(fake.held) == 2)
        fake.cancel, fake.pause = [cancelled], [paused]
        fake.wait_for(lambda: len(fake.outcomes()) == 2)
    assert fake.outcomes()[cancelled] == {"cancelled": {}}
    assert fake.outcomes()[paused] == {"yielded": {"checkpoint": {"at": 5}}}


def test_the_end_waits_for_what_runs_and_gives_the_rest_back(fake: Fake) -> None:
    ended: list[str] = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("stubborn")

    def thread(ctx: Context) -> None:
        time.sleep(30)

    running = serve(fake, sleep, stubborn, thread, grace=0.5)
    short, long = fake.add("sleep", {"seconds": 0.3}), fake.add("sleep", {"seconds": 60})
    others = [fake.add("stubborn"), fake.add("thread")]
    fake.wait_for(lambda: len(fake.held) == 4 and len(polls(fake)) >= 2)
    after = fake.add("sleep", {"seconds": 0})
    fake.wait_for(lambda: after in fake.outcomes())
    began = time.monotonic()
    running.stop()
    assert 0.4 < time.monotonic() - began < 8 and running.error is None
    outcomes = fake.outcomes()
    assert outcomes[short] == {"done": None}
    assert [outcomes[one] for one in [long, *others]] == [{"released": {}}] * 3
    assert len(fake.left) == 1 and set(ended) == {"stubborn"}


def test_the_end_while_the_server_is_away_comes_in_time(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    running = serve(fake, noop, grace=0.5)
    fake.wait_for(lambda: len(polls(fake)) == 1)
    fake.before = lambda route, body: (503, None) if body.get("results") or "leave" in route else None
    fake.add("noop")
    fake.wait_for(lambda: any(body["results"] for body in polls(fake)))
    running.stop()
    assert running.error is None
    assert any("1 results did not reach the server" in record.getMessage() for record in caplog.records)


def test_what_cannot_run_is_refused_before_it_starts(fake: Fake) -> None:
    from pensum import AsyncClient, Client

    def wrong(x: bytes) -> None: ...

    with pytest.raises(TypeError, match="task wrong: x: bytes"):
        Agent("a", [task(wrong)], url=fake.url).run()
    cases: list[Any] = [
        lambda: Agent("a", url=fake.url).run(),
        lambda: Agent("a", [noop]),
        lambda: Agent("a", [task(noop), task(name="noop")(sleep)]),
        lambda: Agent("a", [task(noop)], max_concurrent=0),
        lambda: Agent("a", [task(noop)], capabilities="x"),
        lambda: Agent("a", [task(noop)], lease=-1),
        lambda: Agent("a", [task(noop)], client=Client(fake.url)),  # type: ignore[arg-type]
        lambda: Agent("a", [task(noop)], resources={"cpu_cores": object()}, url=fake.url).run(),
    ]
    for case in cases:
        with pytest.raises(pensum.Invalid):
            case()
    assert fake.requests == []

    async def own() -> None:
        async with AsyncClient(fake.url) as client:
            one = Agent("a", [task(noop)], client=client)
            serving = asyncio.create_task(one.serve())
            while not polls(fake):
                await asyncio.sleep(0.01)
            with pytest.raises(pensum.PensumError, match="runs already"):
                await one.serve()
            one.stop()
            await serving

    asyncio.run(own())


def test_nobody_listens() -> None:
    from harness import free_port

    running = Running(Agent("a", [task(noop)], url=f"http://127.0.0.1:{free_port()}"))
    running.wait()
    assert isinstance(running.error, pensum.Unavailable)
