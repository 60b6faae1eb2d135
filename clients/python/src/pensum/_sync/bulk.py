# Made from _async/bulk.py by tools/make_sync.py: change that one.
"""The same command for every task of a filter."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from ..errors import Invalid
from ..inputs import Filter, task_filter
from ..models import BulkOperation, BulkResult, Progress, Task
from ..times import Time
from .tasks import Tasks
from .transport import Transport
from .watch import OUTAGE, completed


class Bulk:
    """Bulk operations. Each is done by a task of its own."""

    def __init__(self, transport: Transport, tasks: Tasks) -> None:
        self._transport = transport
        self._tasks = tasks

    def start(
        self,
        action: str,
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
        fingerprint: str | None = None,
        all: bool = False,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> BulkOperation:
        """Starts to `cancel`, `retry`, `delete`, `pause` or `resume` the tasks that match every filter now.

        Without a filter it is refused unless `all` is true. `dry_run` only counts. `fingerprint` is that of a group of dead
        letters, and needs `dead_lettered`.
        """
        matching = task_filter(
            status, queue=queue, handler=handler, task_type=task_type, priority=priority, assigned_to=assigned_to,
            agent_id=agent_id, created_by=created_by, key=key, tag=tag, workflow_id=workflow_id, parent_id=parent_id,
            created_after=created_after, created_before=created_before, dead_lettered=dead_lettered, q=q,
            fingerprint=fingerprint,
        )  # fmt: skip
        body = {"action": action, "filter": matching, "all": all, "dry_run": dry_run}
        answer = self._transport.call("start_bulk", body=body, idempotency_key=idempotency_key)
        return BulkOperation.parse(answer)

    def wait(
        self,
        operation: BulkOperation,
        timeout: timedelta | float | None = None,
        *,
        outage: timedelta | float = OUTAGE,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> BulkResult:
        """Waits for the end of a bulk operation. `on_progress` is called with its progress whenever that changes.

        Raises `TaskFailed` when the operation itself was cancelled or failed.
        """
        if operation.task_id is None:
            raise Invalid("operation: was a dry run, so there is nothing to wait for")
        told: Progress | None = None

        def tell(task: Task) -> None:
            nonlocal told
            if on_progress is not None and task.progress is not None and task.progress != told:
                told = task.progress
                on_progress(told)

        task = self._tasks.wait(operation, timeout, outage=outage, on_change=tell)
        return BulkResult.parse(completed(task).result)
