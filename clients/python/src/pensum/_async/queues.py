"""Queues, executions, dead letters and the intake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ..agents import Acceptance, Completed
from ..inputs import Filter, TaskRef, given, ident, object_json, task_filter
from ..models import Execution, RetryPolicy, Task
from ..system import AllQueueStats, DeadLetterGroups, IntakeRetried, IntakeRow, Queue, QueueSettings, RateLimit
from ..times import Duration, Time
from .tasks import AsyncTasks
from .transport import AsyncTransport


class AsyncQueues:
    """Queues. A queue needs no making: tasks name it, and `put` gives it settings."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> AsyncIterator[Queue]:
        """The queues that have settings or hold tasks, by id."""
        return self._transport.pages("list_queues", Queue.parse, limit, {})

    async def get(self, name: str) -> Queue:
        """Reads a queue."""
        return Queue.parse(await self._transport.call("get_queue", path={"name": name}))

    async def put(
        self,
        name: str,
        settings: QueueSettings | Mapping[str, Any] | None = None,
        *,
        title: str | None = None,
        max_concurrent: int | None = None,
        max_concurrent_per_key: int | None = None,
        auto_start: bool | None = None,
        persistent: bool | None = None,
        rate_limit: RateLimit | str | Mapping[str, Any] | None = None,
        max_depth: int | None = None,
        max_age: Duration | None = None,
        when_full: str | None = None,
        priority: str | int | None = None,
        timeout: Duration | None = None,
        max_retries: int | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        ageing: Duration | None = None,
        fair: bool | None = None,
        if_match: int | None = None,
    ) -> Queue:
        """Gives a queue just these settings; what is not given has its default.

        `settings` may be those of a queue that was read, and the other arguments change single ones of them. `title`
        is the queue's name for people. With `if_match` only at that `version` of the queue.
        """
        body = {} if settings is None else object_json(settings, "settings")
        body |= given(
            name=title, max_concurrent=max_concurrent, max_concurrent_per_key=max_concurrent_per_key,
            auto_start=auto_start, persistent=persistent, rate_limit=rate_limit, max_depth=max_depth, max_age=max_age,
            when_full=when_full, priority=priority, timeout=timeout, max_retries=max_retries, retry=retry,
            ageing=ageing, fair=fair,
        )  # fmt: skip
        answer = await self._transport.call("put_queue", path={"name": name}, body=body, if_match=if_match)
        return Queue.parse(answer)

    async def pause(self, name: str, *, idempotency_key: str | None = None) -> Queue:
        """Starts nothing more of a queue."""
        return await self._command("pause_queue", name, idempotency_key)

    async def resume(self, name: str, *, idempotency_key: str | None = None) -> Queue:
        """Starts the tasks of a queue again."""
        return await self._command("resume_queue", name, idempotency_key)

    async def process(self, name: str, *, idempotency_key: str | None = None) -> Queue:
        """Lets start what is in a manual queue now."""
        return await self._command("process_queue", name, idempotency_key)

    async def _command(self, operation: str, name: str, idempotency_key: str | None) -> Queue:
        answer = await self._transport.call(operation, path={"name": name}, idempotency_key=idempotency_key)
        return Queue.parse(answer)

    async def delete(self, name: str) -> None:
        """Takes the settings of a queue away; refused while it holds unfinished tasks."""
        await self._transport.call("delete_queue", path={"name": name})

    async def stats(self) -> AllQueueStats:
        """The counts of tasks by status, in all and per queue."""
        return AllQueueStats.parse(await self._transport.call("get_queue_stats"))


class AsyncExecutions:
    """Attempts of tasks that have ended."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, *, task: TaskRef | None = None, limit: int | None = None) -> AsyncIterator[Execution]:
        """The ended attempts of all tasks, or of one."""
        query = {"task_id": None if task is None else ident(task)}
        return self._transport.pages("list_executions", Execution.parse, limit, query)

    async def get(self, execution: str | Execution) -> Execution:
        """Reads one attempt: its id is that of the task, a dot and the attempt's number."""
        path = {"id": ident(execution, "execution")}
        return Execution.parse(await self._transport.call("get_execution", path=path))

    async def complete(self, results: Sequence[Mapping[str, Any]]) -> tuple[Acceptance, ...]:
        """Hands results of an agent in: `{execution_id, lease_token, outcome}` each. Says what became of each."""
        answer = await self._transport.call("complete_executions", body={"results": [*results]})
        return Completed.parse(answer).results


class AsyncDeadLetters:
    """Failed tasks that nobody has dealt with."""

    def __init__(self, transport: AsyncTransport, tasks: AsyncTasks) -> None:
        self._transport = transport
        self._tasks = tasks

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
        q: str | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Task]:
        """The dead letters that match every filter; `fingerprint` is that of a group."""
        query = task_filter(
            status, queue=queue, handler=handler, task_type=task_type, priority=priority, assigned_to=assigned_to,
            agent_id=agent_id, created_by=created_by, key=key, tag=tag, workflow_id=workflow_id, parent_id=parent_id,
            created_after=created_after, created_before=created_before, q=q, fingerprint=fingerprint,
        )  # fmt: skip
        return self._transport.pages("list_dead_letters", Task.parse, limit, query)

    async def groups(
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
        q: str | None = None,
        fingerprint: str | None = None,
        limit: int | None = None,
    ) -> DeadLetterGroups:
        """The dead letters that match every filter, by handler and error: at most `limit` groups, 50 by default."""
        query = task_filter(
            status, queue=queue, handler=handler, task_type=task_type, priority=priority, assigned_to=assigned_to,
            agent_id=agent_id, created_by=created_by, key=key, tag=tag, workflow_id=workflow_id, parent_id=parent_id,
            created_after=created_after, created_before=created_before, q=q, fingerprint=fingerprint,
        )  # fmt: skip
        answer = await self._transport.call("group_dead_letters", query={**query, **given(limit=limit)})
        return DeadLetterGroups.parse(answer)

    async def retry(self, task: TaskRef, *, idempotency_key: str | None = None) -> Task:
        """Runs a dead letter again."""
        return await self._tasks.retry(task, idempotency_key=idempotency_key)

    async def delete(self, task: TaskRef) -> None:
        """Removes a dead letter and everything about it."""
        await self._tasks.delete(task)


class AsyncIntake:
    """Tasks that programs left in the database of a store on PostgreSQL; other stores have an empty list."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(self, *, status: str | None = None, limit: int | None = None) -> AsyncIterator[IntakeRow]:
        """The rows that are `waiting` or `rejected`, or only those of one `status`."""
        return self._transport.pages("list_intake", IntakeRow.parse, limit, given(status=status))

    async def retry(
        self, row: int | IntakeRow, *, task: Any = None, idempotency_key: str | None = None
    ) -> IntakeRetried:
        """Has a rejected row looked at again, with another `task` in its place where one is given."""
        body = None if task is None else {"task": task}
        answer = await self._transport.call(
            "retry_intake", path={"id": _row(row)}, body=body, idempotency_key=idempotency_key
        )
        return IntakeRetried.parse(answer)

    async def delete(self, row: int | IntakeRow) -> None:
        """Removes a row, so that it is never enqueued."""
        await self._transport.call("delete_intake", path={"id": _row(row)})


def _row(row: int | IntakeRow) -> int:
    return row.id if isinstance(row, IntakeRow) else row
