"""Agents: processes that run tasks as Python functions.

    from pensum.agent import Agent, task

    @task(timeout="1m")
    def resize(path: str, width: int = 800) -> str: ...

    Agent("resizer-1", [resize], max_concurrent=4).run()

Elsewhere, `resize.enqueue(client, path="cat.png")` creates a task of it.
"""

from .agent import Agent
from .context import Context
from .link import SessionFenced
from .outcomes import Again, Cancelled, NonRetryable, Paused, RetryAfter, Wait
from .task import InvalidParameters, TaskFunction, task

__all__ = [
    "Again",
    "Agent",
    "Cancelled",
    "Context",
    "InvalidParameters",
    "NonRetryable",
    "Paused",
    "RetryAfter",
    "SessionFenced",
    "TaskFunction",
    "Wait",
    "task",
]
