"""Steps, checkpoints, results and logs of runs, at a server that refuses them or loses them; not the real one."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import serve
from fake import Fake
from pensum.agent import Cancelled, Context, task


async def noop() -> None: ...


def test_a_step_is_done_once_a_heartbeat_was_accepted(fake: Fake) -> None:
    log: list[str] = []

    def work(ctx: Context) -> Any:
        first = ctx.step("first", lambda: log.append("first") or 1)  # type: ignore[func-returns-value]
        log.append("went on")
        return first

    tries: list[Any] = []

    def refuse(route: str, body: Any) -> Any:
        if route.endswith("/heartbeat") and len(tries) < 3:
            tries.append(body)
            return (503, None)
        return None

    fake.before = refuse
    with serve(fake, work, lease=1):
        execution = fake.add("work")
        fake.wait_for(lambda: len(tries) == 3)
        assert log == ["first"] and fake.results == []
        fake.wait_for(lambda: execution in fake.outcomes())
    assert log == ["first", "went on"] and fake.outcomes()[execution] == {"done": 1}
    assert all(one["executions"][0]["checkpoint"] == {"$steps": {"first": 1}, "$saved": None} for one in tries)


def test_a_step_under_a_lost_lease_does_not_go_on(fake: Fake) -> None:
    log: list[str] = []

    def work(ctx: Context) -> None:
        try:
            ctx.step("first", lambda: 1)
            log.append("went on")
        except Cancelled:
            log.append("cancelled")

    fake.lost = ["task-1.1"]
    fake.redeliver = False
    with serve(fake, work):
        fake.add("work")
        fake.wait_for(lambda: log == ["cancelled"])
    assert fake.results == []


def test_steps_of_an_earlier_attempt_are_not_run_again(fake: Fake) -> None:
    async def work(ctx: Context) -> Any:
        async def never() -> None:
            raise AssertionError

        async def second() -> set[int]:
            return {2}

        assert ctx.checkpoint == {"at": 3}
        return [await ctx.step("first", never), await ctx.step("second", second), ctx.checkpoint]

    def saved(ctx: Context) -> Any:
        return ctx.checkpoint

    with serve(fake, work, saved):
        execution = fake.add("work", checkpoint={"$steps": {"first": [1]}, "$saved": {"at": 3}})
        plain = fake.add("saved", checkpoint={"of": "another program"})
        fake.wait_for(lambda: len(fake.outcomes()) == 2)
    # What a step returns is what the next attempt would find: JSON.
    assert fake.outcomes()[execution] == {"done": [[1], [2], {"at": 3}]}
    assert fake.outcomes()[plain] == {"done": {"of": "another program"}}


def test_steps_say_when_they_are_of_the_wrong_kind(fake: Fake) -> None:
    async def asynchronous(ctx: Context) -> Any:
        return await ctx.step("x", lambda: 1)  # type: ignore[misc]

    def synchronous(ctx: Context) -> Any:
        return ctx.step("x", noop)

    async def in_thread(ctx: Context) -> Any:
        return await ctx.step("x", asyncio.to_thread, max, 3, 4)

    def too_large(ctx: Context) -> None:
        ctx.save("x" * (1 << 20))

    with serve(fake, asynchronous, synchronous, in_thread, too_large):
        wrong = [fake.add(name) for name in ["asynchronous", "synchronous", "in_thread", "too_large"]]
        fake.wait_for(lambda: len(fake.outcomes()) == 4)
    outcomes = [fake.outcomes()[one] for one in wrong]
    assert "asyncio.to_thread" in outcomes[0]["retry"]["message"] and outcomes[0]["retry"]["type"] == "TypeError"
    assert outcomes[1]["retry"]["type"] == "TypeError" and outcomes[2] == {"done": 4}
    assert outcomes[3]["retry"] == {
        "type": "Invalid", "message": "checkpoint: has 1,048,578 bytes as JSON; at most 1,048,576 are kept"
    }  # fmt: skip


def test_a_request_that_is_refused_as_a_whole_costs_only_what_is_wrong_with_it(fake: Fake) -> None:
    async def give(value: Any) -> Any:
        return value

    def picky(route: str, body: Any) -> Any:
        results = (body or {}).get("results", [])
        if any(one["outcome"].get("done") == "poison" for one in results):
            return 422, {"type": "urn:pensum:problem:invalid", "detail": "no poison", "status": 422}
        return None

    fake.before = picky
    with serve(fake, give):
        executions = [fake.add("give", {"value": value}) for value in ["a", "poison", "b"]]
        fake.wait_for(lambda: len(fake.outcomes()) == 3)
    assert [fake.outcomes()[one].get("done") for one in executions] == ["a", None, "b"]
    failure = fake.outcomes()[executions[1]]["fail"]
    assert failure["type"] == "invalid_result" and "no poison" in failure["message"]


def test_results_without_json_and_too_large_ones_fail(fake: Fake) -> None:
    async def give(kind: str) -> Any:
        return {"nan": float("nan"), "bytes": b"x", "large": "x" * (1 << 20), "surrogate": "\ud800"}[kind]

    with serve(fake, give):
        executions = [fake.add("give", {"kind": kind}) for kind in ["nan", "bytes", "large", "surrogate"]]
        fake.wait_for(lambda: len(fake.outcomes()) == 4)
    assert {fake.outcomes()[one]["fail"]["type"] for one in executions} == {"invalid_result"}


def test_a_long_log_arrives_whole_and_in_order(fake: Fake) -> None:
    async def talk(ctx: Context) -> None:
        for n in range(500):
            ctx.log(f"{n} " + "x" * 2000)
        ctx.log("a\ud800b", "stderr")
        ctx.progress(75, "most")

    with serve(fake, talk):
        execution = fake.add("talk")
        fake.wait_for(lambda: execution in fake.outcomes())
    parts = [one for beat in fake.beats for one in beat["executions"]] + fake.results
    lines = [line for part in parts for line in part.get("logs", [])]
    assert [line["message"].split(" ")[0] for line in lines[:-1]] == [str(n) for n in range(500)]
    assert (lines[-1]["message"], lines[-1]["stream"]) == ("a?b", "stderr")
    assert [part["progress"] for part in parts if "progress" in part][-1] == {"percent": 75, "message": "most"}
