"""Records, times and arguments, without a server."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta, timezone
from typing import Any

import httpx
import pensum
import pytest
from pensum.errors import from_answer
from pensum.times import parse_time

UTC = timezone.utc


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21T22:47:16Z", datetime(2026, 11, 21, 22, 47, 16, tzinfo=UTC)),
        ("2026-11-21T22:47:16.5Z", datetime(2026, 11, 21, 22, 47, 16, 500000, tzinfo=UTC)),
        ("2026-11-21T22:47:16.123456789Z", datetime(2026, 11, 21, 22, 47, 16, 123456, tzinfo=UTC)),
        ("2026-11-21t22:47:16.000001+05:30", datetime(2026, 11, 21, 17, 17, 16, 1, tzinfo=UTC)),
        ("2026-11-21T00:00:00-01:00", datetime(2026, 11, 21, 1, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_aware_datetimes(text: str, expected: datetime) -> None:
    assert parse_time(text) == expected and parse_time(text).tzinfo is not None


@pytest.mark.parametrize("wrong", ["2026-11-21T22:47:16", "soon", 5, None, ""])
def test_what_is_no_time_is_an_error(wrong: object) -> None:
    with pytest.raises(pensum.PensumError, match="where a time was expected"):
        parse_time(wrong)


USAGE = {"wall_seconds": 1.5, "energy_joules": 7}


def test_unknown_fields_are_kept_and_values_are_frozen() -> None:
    usage = pensum.Usage.parse(USAGE)
    assert usage.extra == {"energy_joules": 7} and usage["energy_joules"] == 7 and usage.raw == USAGE
    assert usage == pensum.Usage(wall_seconds=1.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        usage.wall_seconds = 2.0  # type: ignore[misc]
    status = pensum.LogLine.parse(
        {"seq": 1, "at": "2026-11-21T22:47:16Z", "attempt": 1, "stream": "video", "message": ""}
    )
    assert status.stream == "video"


@pytest.mark.parametrize("wrong", [None, [], "x", {}, {"wall_seconds": None}])
def test_an_answer_of_another_shape_is_an_error(wrong: object) -> None:
    with pytest.raises(pensum.PensumError, match="Usage"):
        pensum.Usage.parse(wrong)


def test_settings_of_a_later_version_go_back_as_they_came() -> None:
    from pensum.inputs import object_json

    rate = {"starts": 5, "per": 60, "shape": "round"}
    sent = {"max_concurrent": 3, "timeout": 60, "rate_limit": rate, "colour": "red"}
    assert object_json(pensum.QueueSettings.parse(sent)) == sent


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, pensum.Invalid), (401, pensum.Forbidden), (403, pensum.Forbidden), (404, pensum.NotFound),
        (409, pensum.Conflict), (412, pensum.VersionMismatch), (413, pensum.Invalid), (415, pensum.Invalid),
        (418, pensum.PensumError), (421, pensum.Forbidden), (422, pensum.Invalid), (500, pensum.PensumError),
        (502, pensum.Unavailable), (503, pensum.Unavailable),
    ],
)  # fmt: skip
def test_each_status_has_its_exception(status: int, kind: type[pensum.PensumError]) -> None:
    problem = {"detail": "that is wrong", "errors": [{"path": "a.b", "message": "no"}], "status": status}
    error = from_answer("GET /x", status, problem)
    assert type(error) is kind and error.status == status and "that is wrong" in str(error)
    assert error.problem == problem
    if isinstance(error, pensum.Invalid):
        assert error.errors == [("a.b", "no")] and isinstance(error, ValueError)
    for odd in [None, [], "x", {"errors": 5}, {"detail": 7, "errors": [5]}]:
        assert "Pensum server" in str(from_answer("GET /x", status, odd))


def served(*answers: httpx.Response) -> tuple[pensum.Client, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answers[min(len(seen), len(answers)) - 1]

    return pensum.Client("http://pensum.test", token="secret", transport=httpx.MockTransport(answer)), seen


def test_a_server_that_asks_for_patience_gets_it_and_the_same_key_again() -> None:
    busy = httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "the disk is full"})
    client, seen = served(busy, busy, httpx.Response(202, json={"matched": 1, "task_id": "x"}))
    assert client.bulk.start("cancel", tag="x").task_id == "x"
    keys = [request.headers["Idempotency-Key"] for request in seen]
    assert len(keys) == 3 and len(set(keys)) == 1
    assert all(request.headers["Authorization"] == "Bearer secret" for request in seen)
    client.bulk.start("cancel", tag="x")
    assert seen[-1].headers["Idempotency-Key"] != keys[0]


@pytest.mark.parametrize(
    "answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json=[]), httpx.Response(200, json={"a": 1})]
)
def test_answers_of_another_server_are_errors(answer: httpx.Response) -> None:
    client, _ = served(answer)
    calls: list[Any] = [client.system.status, lambda: client.tasks.get("x"), lambda: list(client.tasks.list())]
    for call in calls:
        with pytest.raises(pensum.PensumError, match="[Pp]ensum"):
            call()


def test_a_refusal_is_not_repeated() -> None:
    client, seen = served(httpx.Response(500, json={"detail": "a defect"}))
    with pytest.raises(pensum.PensumError, match="a defect"):
        client.tasks.create("noop", timeout=timedelta(seconds=1))
    assert len(seen) == 1
