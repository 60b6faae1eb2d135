"""Client for Pensum, a durable task engine.

    with pensum.Client() as client:
        task = client.tasks.create("command", {"program": "echo", "args": ["hello"]})
        print(client.tasks.wait(task, timeout=60).result)

`AsyncClient` has the same methods, to be awaited.
"""

from ._async.client import AsyncClient
from ._sync.client import Client
from .agent import Agent, Context, NonRetryable, RetryAfter, task
from .agents import Acceptance, AgentInfo, Delivery, Heard, Polled
from .breakers import Breaker, BreakerSettings
from .embedded import EmbeddedServer, find_binary
from .errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PensumError,
    Problem,
    QueueFull,
    StartFailed,
    TaskFailed,
    Unavailable,
    VersionMismatch,
    WaitTimeout,
)
from .inputs import UNSET, NewTask, Unique
from .models import (
    BulkOperation,
    BulkResult,
    Dependencies,
    ErrorInfo,
    Event,
    Execution,
    Explanation,
    Gate,
    LogLine,
    Progress,
    Relative,
    Resources,
    RetryPolicy,
    Task,
    TaskPriority,
    TaskStatus,
    Usage,
)
from .system import (
    AgentStatus,
    AllQueueStats,
    DeadLetterGroup,
    DeadLetterGroups,
    Health,
    IntakeRetried,
    IntakeRow,
    Node,
    PerformanceMetrics,
    PersistenceStats,
    Queue,
    QueueSettings,
    QueueStats,
    RateLimit,
    SystemStatus,
)

__version__ = "0.1.0"

__all__ = [
    "UNSET",
    "Acceptance",
    "Agent",
    "AgentInfo",
    "AgentStatus",
    "AllQueueStats",
    "AsyncClient",
    "Breaker",
    "BreakerSettings",
    "BulkOperation",
    "BulkResult",
    "Client",
    "Conflict",
    "Context",
    "DeadLetterGroup",
    "DeadLetterGroups",
    "Delivery",
    "Dependencies",
    "EmbeddedServer",
    "ErrorInfo",
    "Event",
    "Execution",
    "Explanation",
    "Forbidden",
    "Gate",
    "Health",
    "Heard",
    "IntakeRetried",
    "IntakeRow",
    "Invalid",
    "LogLine",
    "NewTask",
    "Node",
    "NonRetryable",
    "NotFound",
    "PensumError",
    "PerformanceMetrics",
    "PersistenceStats",
    "Polled",
    "Problem",
    "Progress",
    "Queue",
    "QueueFull",
    "QueueSettings",
    "QueueStats",
    "RateLimit",
    "Relative",
    "Resources",
    "RetryAfter",
    "RetryPolicy",
    "StartFailed",
    "SystemStatus",
    "Task",
    "TaskFailed",
    "TaskPriority",
    "TaskStatus",
    "Unavailable",
    "Unique",
    "Usage",
    "VersionMismatch",
    "WaitTimeout",
    "find_binary",
    "task",
]
