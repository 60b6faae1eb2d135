"""Parameters by type hints: what fits, what is refused and how, and the schema that says so beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from enum import Enum, IntEnum
from typing import Any, Dict, List, Literal, NewType, Optional, TypedDict, Union

import pensum
import pytest
from pensum.agent import Context, InvalidParameters, NonRetryable, RetryAfter, TaskFunction, Wait, task
from pensum.agent.hints import Mismatch, Unsupported, converter
from pensum.agent.outcomes import of_error


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    ONE = 1


@dataclass
class Size:
    width: int
    height: int = 600


@dataclass(frozen=True)
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)


class Point(TypedDict):
    x: float
    y: float


class Named(Point, total=False):
    name: str


UserId = NewType("UserId", int)
NOON = datetime(2030, 1, 31, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("hint", "json", "value"),
    [
        (int, 5, 5), (int, 5.0, 5), (float, 5, 5.0), (float, 0.5, 0.5), (str, "x", "x"), (bool, True, True),
        (None, None, None), (Any, {"x": [1]}, {"x": [1]}), (object, 5, 5), (UserId, 5, 5),
        (list, [1, "x"], [1, "x"]), (list[int], [1, 2], [1, 2]), (List[str], ["x"], ["x"]),
        (tuple[int, ...], [1, 2], (1, 2)), (tuple[int, str], [1, "x"], (1, "x")), (set[int], [1, 1], {1}),
        (dict, {"x": 1}, {"x": 1}), (dict[str, int], {"x": 1}, {"x": 1}), (Dict[str, Any], {"x": []}, {"x": []}),
        (Optional[int], None, None), (Optional[int], 3, 3), (int | str, "x", "x"), (Union[int, str], 3, 3),
        (Size | None, {"width": 3}, Size(3)), (Size, {"width": 3, "height": 4}, Size(3, 4)),
        (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
        (Point, {"x": 1, "y": 2}, {"x": 1.0, "y": 2.0}), (Named, {"x": 1, "y": 2}, {"x": 1.0, "y": 2.0}),
        (Color, "red", Color.RED), (Level, 1, Level.ONE), (Literal["a", 1], 1, 1), (Literal["a", 1], "a", "a"),
        (datetime, "2030-01-31T12:00:00Z", NOON), (datetime, "2030-01-31T13:00:00+01:00", NOON),
        (date, "2030-01-31", date(2030, 1, 31)), (timedelta, 1.5, timedelta(seconds=1.5)),
    ],
)  # fmt: skip
def test_values_that_fit(hint: Any, json: Any, value: Any) -> None:
    made = converter(hint)(json, "x")
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize(
    ("hint", "json", "message"),
    [
        (int, "5", "x: must be a whole number, not '5'"),
        (int, True, "x: must be a whole number, not True"),
        (int, 1.5, "x: must be a whole number, not 1.5"),
        (float, "1", "x: must be a number"),
        (float, False, "x: must be a number"),
        (str, 5, "x: must be text, not 5"),
        (bool, 1, "x: must be true or false, not 1"),
        (int, None, "x: must be a whole number, not None"),
        (list[int], [1, "x"], "x[1]: must be a whole number"),
        (list[int], {"a": 1}, "x: must be a list"),
        (tuple[int, str], [1], "x: must be a list of 2 values"),
        (dict[str, int], {"a": "b"}, "x.a: must be a whole number"),
        (dict, [], "x: must be an object"),
        (Optional[int], "x", "x: must be one of int, null, not 'x'"),
        (Size, {}, "x.width: is missing"),
        (Size, {"width": 1, "depth": 2}, "x.depth: is not known here; known are: width, height"),
        (Size | None, {"width": "x"}, "x.width: must be a whole number"),
        (Tree, {"name": "a", "children": [{"name": 5}]}, "x.children[0].name: must be text"),
        (Point, {"x": 1}, "x.y: is missing"),
        (Color, "green", "x: must be one of 'red', 'blue', not 'green'"),
        (Color, [], "x: must be one of"),
        (Level, True, "x: must be one of 1"),
        (Literal["a", 1], True, "x: must be one of 'a', 1, not True"),
        (datetime, "2030-01-31T12:00:00", "x: must be a time such as"),
        (datetime, "2030-02-31T12:00:00Z", "x: must be a time such as"),
        (datetime, 5, "x: must be a time such as"),
        (date, "31.1.2030", "x: must be a date"),
        (timedelta, "1h", "x: must be a number"),
        (timedelta, 1e300, "x: must be a number of seconds"),
        (str, 5 * 10**100, "…"),
    ],
)
def test_values_that_do_not(hint: Any, json: Any, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        converter(hint)(json, "x")
    assert message in str(caught.value)


@pytest.mark.parametrize("hint", [bytes, complex, dict[int, str], Context, list[bytes], Union[int, bytes]])
def test_hints_without_json_are_named(hint: Any) -> None:
    with pytest.raises(Unsupported):
        converter(hint)

    def function(first: int, x: hint) -> None: ...

    function.__annotations__["x"] = hint
    with pytest.raises(TypeError, match="task function: x: "):
        _ = task(function).schema


@task(queue="pictures", retries=5, timeout="1m", requires=["gpu"], resources={"cpu_cores": 2}, priority="high")
def resize(path: str, size: Size = Size(800), colors: list[Color] | None = None, at: Optional[datetime] = None) -> str:
    """Makes a picture smaller,
    or larger.

    Not in the summary.
    """
    return f"{path} {size.width}"


@task(name="mail.send")
async def mail(ctx: Context, to: str, **rest: int) -> list[Any]:
    return [to, rest, ctx.attempt]


def test_a_decorated_function_is_called_as_before() -> None:
    assert resize("a.png") == "a.png 800" and resize(path="b", size=Size(1)) == "b 1"
    assert resize.__name__ == "resize" and "or larger" in str(resize.__doc__)
    assert (resize.name, mail.name) == ("resize", "mail.send")
    assert (resize.is_async, mail.is_async) == (False, True)
    assert "mail.send" in repr(mail)
    assert isinstance(task(lambda: 1), TaskFunction)
    for wrong in [5, int]:
        with pytest.raises(TypeError):
            task(wrong)


def test_arguments_come_from_parameters_by_name() -> None:
    parameters = {"path": "x", "size": {"width": 3}, "colors": ["red"], "at": "2030-01-31T12:00:00Z"}
    assert resize.signature.arguments(parameters) == {
        "path": "x", "size": Size(3), "colors": [Color.RED], "at": NOON
    }  # fmt: skip
    assert resize.signature.arguments({"path": "x"}) == {"path": "x"}
    assert mail.signature.takes_context and not resize.signature.takes_context
    assert mail.signature.arguments({"to": "x", "cc": 5}) == {"to": "x", "cc": 5}

    def bare(ctx, x=3): ...  # type: ignore[no-untyped-def]

    def none() -> None: ...

    assert task(bare).signature.takes_context and task(bare).signature.arguments({"x": []}) == {"x": []}
    assert task(none).signature.arguments(None) == {}
    cases: list[tuple[TaskFunction[..., Any], Any, str]] = [
        (resize, {}, "parameters.path: is missing"),
        (resize, {"path": 5}, "parameters.path: must be text"),
        (resize, {"path": "x", "colors": ["red", "x"]}, "parameters.colors[1]: must be one of 'red', 'blue'"),
        (resize, {"path": "x", "depth": 1}, "parameters.depth: is not known here; known are: path, size, colors, at"),
        (resize, [], "parameters: must be an object, not []"),
        (task(none), {"x": 1}, "parameters.x: is not known here; known are: none"),
        (mail, {"cc": 1}, "parameters.to: is missing"),
    ]
    for function, parameters, message in cases:
        with pytest.raises(InvalidParameters) as caught:
            function.signature.arguments(parameters)
        assert message in str(caught.value)


def test_arguments_that_only_have_a_place_are_refused() -> None:
    def some(*values: int) -> None: ...

    def one(value: int, /) -> None: ...

    for function in [some, one]:
        with pytest.raises(TypeError, match="value.*by name"):
            _ = task(function).signature


def test_schemas_say_what_fits() -> None:
    assert resize.schema == {
        "title": "resize",
        "description": "Makes a picture smaller, or larger.",
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "size": {"$ref": "#/$defs/Size", "default": {"width": 800, "height": 600}},
            "colors": {
                "anyOf": [{"type": "array", "items": {"enum": ["red", "blue"]}}, {"type": "null"}], "default": None
            },
            "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}], "default": None},
        },
        "required": ["path"],
        "additionalProperties": False,
        "$defs": {
            "Size": {
                "type": "object",
                "properties": {"width": {"type": "integer"}, "height": {"type": "integer"}},
                "required": ["width"],
                "additionalProperties": False,
            }
        },
    }  # fmt: skip
    assert mail.schema == {
        "title": "mail.send", "type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]
    }  # fmt: skip

    def other(tree: Tree, a: tuple[int, str], b: Literal["x", 2], c: dict[str, Named], d: Any, e: set[int]) -> None: ...

    schema = task(other).schema
    assert schema["$defs"]["Tree"]["properties"]["children"] == {"type": "array", "items": {"$ref": "#/$defs/Tree"}}
    assert schema["$defs"]["Named"]["required"] == ["x", "y"]
    assert schema["properties"] == {
        "tree": {"$ref": "#/$defs/Tree"},
        "a": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        "b": {"enum": ["x", 2]},
        "c": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Named"}},
        "d": {},
        "e": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    }


def test_a_new_task_has_the_settings_of_the_function_and_checked_parameters() -> None:
    new = resize.new_task(path="x", size=Size(3), colors=[Color.RED], at=NOON)
    assert new == pensum.NewTask(
        "resize",
        {"path": "x", "size": {"width": 3, "height": 600}, "colors": ["red"], "at": "2030-01-31T12:00:00+00:00"},
        queue="pictures", max_retries=5, timeout="1m", requires=["gpu"], resources={"cpu_cores": 2}, priority="high",
    )  # fmt: skip
    changed = resize.options(priority="low", delay=5, tags=["x"]).new_task(path="x")
    assert (changed.priority, changed.delay, changed.tags, changed.queue) == ("low", 5, ["x"], "pictures")
    assert resize.settings.priority == "high"
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("parameters.path", {}), ("parameters.path", {"path": 5}), ("parameters", {"path": b"x"}),
        ("parameters.size.width", {"path": "x", "size": {"width": "x"}}), ("parameters", {"path": float("nan")}),
        ("parameters", {"path": "x", "at": datetime(2030, 1, 1)}),
    ]  # fmt: skip
    for path, parameters in wrong:
        with pytest.raises(pensum.Invalid) as caught:
            resize.new_task(**parameters)
        assert [problem.path for problem in caught.value.errors] == [path]


def test_exceptions_are_outcomes() -> None:
    class OutOfStock(NonRetryable): ...

    cases: list[tuple[BaseException, Any]] = [
        (NonRetryable("no"), {"fail": {"message": "no", "type": "NonRetryable"}}),
        (OutOfStock("none left"), {"fail": {"message": "none left", "type": "OutOfStock"}}),
        (NonRetryable("no", type="x"), {"fail": {"message": "no", "type": "x"}}),
        (RetryAfter(5, "busy"), {"retry": {"message": "busy", "type": "RetryAfter", "after": 5}}),
        (RetryAfter(timedelta(minutes=1), type="x"),
         {"retry": {"message": "it asks for another attempt", "type": "x", "after": 60.0}}),
        (ValueError("bad"), {"retry": {"message": "bad", "type": "ValueError"}}),
        (KeyError(), {"retry": {"message": "KeyError", "type": "KeyError"}}),
        (Wait(children=True), {"wait": {"children": True}}),
        (Wait(signal="go", timeout="1h"), {"wait": {"signal": "go", "timeout": "1h"}}),
        (Wait(until=NOON), {"wait": {"until": "2030-01-31T12:00:00+00:00"}}),
        (Wait(until=5), {"wait": {"until": 5}}),
    ]  # fmt: skip
    for error, outcome in cases:
        assert of_error(error)[0] == outcome
    with pytest.raises(ValueError, match="one of"):
        Wait()
    try:
        raise ValueError("bad")
    except ValueError as error:
        lines = of_error(error)[1]
    assert lines[0].startswith("Traceback") and lines[-1] == "ValueError: bad"
