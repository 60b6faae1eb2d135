"""`@task`: functions that agents run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, overload

from .._async.client import AsyncClient
from .._sync.client import Client
from ..errors import invalid
from ..inputs import NewTask, Unique
from ..models import Resources, RetryPolicy, Task
from ..times import Duration, Time
from .context import Context
from .hints import Convert, Field, Mismatch, Unsupported, converter, object_of, plain_json, shown
from .schema import Schema, object_schema

P = ParamSpec("P")
R = TypeVar("R")


class InvalidParameters(ValueError):
    """The parameters of a task do not fit the function; the message names the parameter."""


class Signature:
    """What a function takes: made of its hints at its first use, so that they may name what is defined later."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        hints = typing.get_type_hints(function)
        self.takes_context = bool(parameters) and _is_context(parameters[0], hints)
        self.fields: dict[str, Field] = {}
        self.defaults: dict[str, Any] = {}
        self.open = False
        self._converts: dict[str, Convert] = {}
        for one in parameters[1:] if self.takes_context else parameters:
            if one.kind is one.VAR_KEYWORD:
                self.open = True
            elif one.kind in (one.VAR_POSITIONAL, one.POSITIONAL_ONLY):
                raise Unsupported(f"{one.name}: arguments are given by name; `*` and `/` do not go with that")
            else:
                self._add(one, hints.get(one.name, Any))

    def _add(self, parameter: inspect.Parameter, hint: Any) -> None:
        name, has_default = parameter.name, parameter.default is not parameter.empty
        self.fields[name] = Field(hint, not has_default)
        if has_default:
            self.defaults[name] = parameter.default
        try:
            self._converts[name] = converter(hint)
        except Unsupported as error:
            raise Unsupported(f"{name}: {error}") from None

    def arguments(self, parameters: Any) -> dict[str, Any]:
        """The arguments of the function from a task's `parameters`. Raises `InvalidParameters`."""
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise InvalidParameters(f"parameters: must be an object, not {shown(parameters)}")
        if not self.fields and not parameters:
            return {}
        own = parameters
        if self.open:
            own = {name: value for name, value in parameters.items() if name in self.fields}
        try:
            arguments = object_of(own, "parameters", self.fields, self._converts)
        except Mismatch as problem:
            raise InvalidParameters(str(problem)) from None
        return {**parameters, **arguments} if self.open else arguments


def _is_context(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
    return hints.get(parameter.name) is Context or (parameter.name == "ctx" and parameter.name not in hints)


class TaskFunction(Generic[P, R]):
    """A function that agents run. Called, it is the function; `enqueue` makes a task of it."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, R]

    def __init__(self, function: Callable[P, R], name: str, settings: NewTask) -> None:
        functools.update_wrapper(self, function)
        self.name = name
        """The handler of its tasks."""
        self.settings = settings
        """What its tasks get that do not say otherwise."""
        self.is_async = inspect.iscoroutinefunction(function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__wrapped__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}: {self.__module__}.{self.__qualname__}>"

    @functools.cached_property
    def signature(self) -> Signature:
        """What it takes. Raises `TypeError` where a hint has no JSON or cannot be resolved."""
        try:
            return Signature(self.__wrapped__)
        except (Unsupported, NameError) as error:
            raise TypeError(f"task {self.name}: {error}") from None

    @property
    def schema(self) -> Schema:
        """The JSON Schema of its parameters."""
        signature = self.signature
        schema = object_schema(signature.fields, signature.defaults, signature.open)
        summary = (inspect.getdoc(self.__wrapped__) or "").split("\n\n")[0].replace("\n", " ")
        return {"title": self.name, **({"description": summary} if summary else {}), **schema}

    def options(
        self,
        *,
        queue: str | None = None,
        retries: int | None = None,
        timeout: Duration | None = None,
        requires: Sequence[str] | None = None,
        resources: Resources | Mapping[str, Any] | None = None,
        priority: str | int | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        delay: Duration | None = None,
        run_at: Time | None = None,
        depends_on: Any = None,
        agent_id: str | None = None,
        key: str | None = None,
        unique: str | Unique | Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
    ) -> TaskFunction[P, R]:
        """The same function with other settings for what it enqueues; what is not given stays as it is."""
        changed = {
            "queue": queue, "max_retries": retries, "timeout": timeout, "requires": requires, "resources": resources,
            "priority": priority, "retry": retry, "delay": delay, "run_at": run_at, "depends_on": depends_on,
            "agent_id": agent_id, "key": key, "unique": unique, "tags": tags,
        }  # fmt: skip
        given = {name: value for name, value in changed.items() if value is not None}
        return TaskFunction(self.__wrapped__, self.name, dataclasses.replace(self.settings, **given))

    def new_task(self, **parameters: Any) -> NewTask:
        """A task of it for `tasks.create_batch`. Raises `Invalid` where the parameters do not fit the hints."""
        try:
            sent = json.loads(json.dumps(parameters, default=plain_json, allow_nan=False))
            self.signature.arguments(sent)
        except InvalidParameters as error:
            path, _, message = str(error).partition(": ")
            raise invalid(path, message) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise invalid("parameters", str(error)) from None
        return dataclasses.replace(self.settings, parameters=sent)

    @overload
    def enqueue(self, client: Client, **parameters: Any) -> Task: ...
    @overload
    def enqueue(self, client: AsyncClient, **parameters: Any) -> Coroutine[Any, Any, Task]: ...
    def enqueue(self, client: Client | AsyncClient, **parameters: Any) -> Task | Coroutine[Any, Any, Task]:
        """Creates a task of it with these parameters; with an `AsyncClient`, to be awaited."""
        new = self.new_task(**parameters)
        names = [field.name for field in dataclasses.fields(new) if field.name not in ("ref", "_")]
        return client.tasks.create(**{name: getattr(new, name) for name in names})


@overload
def task(function: Callable[P, R], /) -> TaskFunction[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    queue: str | None = None,
    retries: int | None = None,
    timeout: Duration | None = None,
    requires: Sequence[str] | None = None,
    resources: Resources | Mapping[str, Any] | None = None,
    priority: str | int | None = None,
    retry: RetryPolicy | Mapping[str, Any] | None = None,
) -> Callable[[Callable[P, R]], TaskFunction[P, R]]: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    retries: int | None = None,
    timeout: Duration | None = None,
    requires: Sequence[str] | None = None,
    resources: Resources | Mapping[str, Any] | None = None,
    priority: str | int | None = None,
    retry: RetryPolicy | Mapping[str, Any] | None = None,
) -> Any:
    """Makes a function, synchronous or asynchronous, one that agents run.

    Its handler is `name`, by default the function's. The other settings are those of the tasks that `enqueue` makes;
    those that are not given have the server's defaults. `retry` are the delays between attempts.
    """

    def wrap(function: Callable[..., Any]) -> TaskFunction[..., Any]:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"@task is for functions, not {function!r}")
        handler = name or function.__name__
        settings = NewTask(
            handler, queue=queue, max_retries=retries, timeout=timeout, requires=requires, resources=resources,
            priority=priority, retry=retry,
        )  # fmt: skip
        return TaskFunction(function, handler, settings)

    return wrap if function is None else wrap(function)
