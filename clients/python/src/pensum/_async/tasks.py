"""Tasks: create, read, change, command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ..inputs import UNSET, Filter, NewTask, TaskRef, Unique, Unset, changes, given, ident, object_json, task_filter
from ..models import BatchCreated, Dependencies, Event, Execution, Explanation, Resources, RetryPolicy, Task
from ..times import Duration, Time
from .transport import AsyncTransport
from .watch import AsyncWatch


class AsyncTasks(AsyncWatch):
    """The tasks of a server. Wherever a task is named, its id or a `Task` will do."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        handler: str | None = None,
        parameters: Any = None,
        *,
        name: str | None = None,
        description: str | None = None,
        task_type: str | None = None,
        metadata: Any = None,
        execution_context: Any = None,
        queue: str | None = None,
        priority: str | int | None = None,
        depends_on: TaskRef | Sequence[TaskRef] | None = None,
        dependencies: TaskRef | Sequence[TaskRef] | None = None,
        on_dependency_failure: str | None = None,
        run_at: Time | None = None,
        delay: Duration | None = None,
        deadline: Time | None = None,
        expires_at: Time | None = None,
        timeout: Duration | None = None,
        queue_timeout: Duration | None = None,
        heartbeat_timeout: Duration | None = None,
        max_retries: int | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        on_limit: str | None = None,
        units: int | None = None,
        key: str | None = None,
        unique: str | Unique | Mapping[str, Any] | None = None,
        requires: Sequence[str] | None = None,
        agent_id: str | None = None,
        resources: Resources | Mapping[str, Any] | None = None,
        created_by: str | None = None,
        assigned_to: str | None = None,
        tags: Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> Task:
        """Creates a task and returns it once it is on disk. `dependencies` is another name of `depends_on`."""
        body = given(
            handler=handler, parameters=parameters, name=name, description=description, task_type=task_type,
            metadata=metadata, execution_context=execution_context, queue=queue, priority=priority,
            depends_on=depends_on, dependencies=dependencies, on_dependency_failure=on_dependency_failure,
            run_at=run_at, delay=delay, deadline=deadline, expires_at=expires_at, timeout=timeout,
            queue_timeout=queue_timeout, heartbeat_timeout=heartbeat_timeout, max_retries=max_retries, retry=retry,
            on_limit=on_limit, units=units, key=key, unique=unique, requires=requires, agent_id=agent_id,
            resources=resources, created_by=created_by, assigned_to=assigned_to, tags=tags,
        )  # fmt: skip
        return Task.parse(await self._transport.call("create_task", body=body, idempotency_key=idempotency_key))

    async def create_batch(
        self, tasks: Sequence[NewTask | Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> tuple[str, ...]:
        """Creates all of the tasks or none, 10,000 at most, and returns their ids in order.

        `depends_on` may name the `ref` of another item.
        """
        items = [object_json(task, f"tasks[{index}]") for index, task in enumerate(tasks)]
        answer = await self._transport.call("create_tasks", body={"tasks": items}, idempotency_key=idempotency_key)
        return BatchCreated.parse(answer).ids

    async def get(self, task: TaskRef) -> Task:
        """Reads a task."""
        return Task.parse(await self._transport.call("get_task", path={"id": ident(task)}))

    def list(
        self,
        *,
        status: Filter = None,
        queue: str | None = None,
        handler: str | None = None,
        task_type: str | None = None,
        priority: str | int | None = None,
        assigned_to: str | None = None,
        agent_id: str | None = None,
        created_by: str | None = None,
        key: str | None = None,
        tag: str | None = None,
        workflow_id: str | None = None,
        parent_id: str | None = None,
        created_after: Time | None = None,
        created_before: Time | None = None,
        dead_lettered: bool | None = None,
        q: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Task]:
        """The tasks that match every filter, newest first, `limit` at most; reads page by page as far as needed."""
        query = task_filter(
            status, queue=queue, handler=handler, task_type=task_type, priority=priority, assigned_to=assigned_to,
            agent_id=agent_id, created_by=created_by, key=key, tag=tag, workflow_id=workflow_id, parent_id=parent_id,
            created_after=created_after, created_before=created_before, dead_lettered=dead_lettered, q=q,
        )  # fmt: skip
        return self._transport.pages("list_tasks", Task.parse, limit, query)

    async def update(
        self,
        task: TaskRef,
        *,
        if_match: int | None = None,
        name: str | None | Unset = UNSET,
        description: str | None | Unset = UNSET,
        assigned_to: str | None | Unset = UNSET,
        metadata: Any = UNSET,
        tags: Sequence[str] | Unset = UNSET,
        priority: str | int | Unset = UNSET,
        deadline: Time | None | Unset = UNSET,
        expires_at: Time | None | Unset = UNSET,
        timeout: Duration | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        retry: RetryPolicy | Mapping[str, Any] | Unset = UNSET,
        parameters: Any = UNSET,
        execution_context: Any = UNSET,
        queue: str | Unset = UNSET,
        run_at: Time | Unset = UNSET,
        delay: Duration | Unset = UNSET,
    ) -> Task:
        """Changes what is given; None takes a field away. With `if_match` only at that `version` of the task."""
        body = changes(
            name=name, description=description, assigned_to=assigned_to, metadata=metadata, tags=tags,
            priority=priority, deadline=deadline, expires_at=expires_at, timeout=timeout, max_retries=max_retries,
            retry=retry, parameters=parameters, execution_context=execution_context, queue=queue, run_at=run_at,
            delay=delay,
        )  # fmt: skip
        path = {"id": ident(task)}
        return Task.parse(await self._transport.call("update_task", path=path, body=body, if_match=if_match))

    async def delete(self, task: TaskRef) -> None:
        """Removes a task and everything about it."""
        await self._transport.call("delete_task", path={"id": ident(task)})

    async def execute(self, task: TaskRef, *, idempotency_key: str | None = None) -> Task:
        """Starts a task now instead of at its time."""
        return await self._command("execute_task", task, None, idempotency_key)

    async def cancel(self, task: TaskRef, reason: str | None = None, *, idempotency_key: str | None = None) -> Task:
        """Cancels a task. One that runs is asked to stop: `cancel_requested_at` is set until it has."""
        return await self._command("cancel_task", task, given(reason=reason), idempotency_key)

    async def pause(self, task: TaskRef, *, idempotency_key: str | None = None) -> Task:
        """Holds a task back. One that runs is asked to pause."""
        return await self._command("pause_task", task, None, idempotency_key)

    async def resume(self, task: TaskRef, *, idempotency_key: str | None = None) -> Task:
        """Lets a paused task go on."""
        return await self._command("resume_task", task, None, idempotency_key)

    async def retry(self, task: TaskRef, *, idempotency_key: str | None = None) -> Task:
        """Runs a failed or cancelled task again, or one that waits out a delay now."""
        return await self._command("retry_task", task, None, idempotency_key)

    async def signal(
        self, task: TaskRef, name: str, payload: Any = None, *, idempotency_key: str | None = None
    ) -> Task:
        """Puts a signal into the inbox of a task."""
        return await self._command("signal_task", task, {"name": name, "payload": payload}, idempotency_key)

    async def _command(self, operation: str, task: TaskRef, body: Any, idempotency_key: str | None) -> Task:
        answer = await self._transport.call(
            operation, path={"id": ident(task)}, body=body, idempotency_key=idempotency_key
        )
        return Task.parse(answer)

    def executions(self, task: TaskRef, *, limit: int | None = None) -> AsyncIterator[Execution]:
        """The attempts of a task, first to last."""
        path = {"id": ident(task)}
        return self._transport.pages("list_executions_of_task", Execution.parse, limit, {}, path=path)

    def events(self, task: TaskRef, *, limit: int | None = None) -> AsyncIterator[Event]:
        """What happened to a task, oldest first."""
        return self._transport.pages("list_events", Event.parse, limit, {}, path={"id": ident(task)})

    async def explain(self, task: TaskRef) -> Explanation:
        """Why a task does not run."""
        return Explanation.parse(await self._transport.call("explain_task", path={"id": ident(task)}))

    async def dependencies(self, task: TaskRef) -> Dependencies:
        """What a task waits for, and what waits for it."""
        return Dependencies.parse(await self._transport.call("get_dependencies", path={"id": ident(task)}))
