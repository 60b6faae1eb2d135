# Made from _async/agents.py by tools/make_sync.py: change that one.
"""Agents: registrations, and the four routes by which an agent works. `pensum.agent` has a runtime on top of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..agents import AgentInfo, Heard, Polled
from ..inputs import given, ident
from ..models import Resources
from ..times import Duration
from .transport import Transport


class Agents:
    """Agents. Wherever one is named, its id or an `AgentInfo` will do."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def register(
        self,
        id: str,
        capabilities: Sequence[str],
        *,
        name: str | None = None,
        agent_type: str | None = None,
        agent_version: str | None = None,
        max_concurrent_tasks: int | None = None,
        resources: Resources | Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        lease: Duration | None = None,
        idempotency_key: str | None = None,
    ) -> AgentInfo:
        """Registers an agent, or gives a known one just these settings."""
        body = given(
            id=id, name=name, agent_type=agent_type, agent_version=agent_version, capabilities=capabilities,
            max_concurrent_tasks=max_concurrent_tasks, resources=resources, labels=labels, lease=lease,
        )  # fmt: skip
        return AgentInfo.parse(
            self._transport.call("register_agent", body=body, idempotency_key=idempotency_key)
        )

    def list(
        self, *, status: str | None = None, capability: str | None = None, limit: int | None = None
    ) -> Iterator[AgentInfo]:
        """The agents with this status and capability, by id."""
        query = given(status=status, capability=capability)
        return self._transport.pages("list_agents", AgentInfo.parse, limit, query)

    def get(self, agent: str | AgentInfo) -> AgentInfo:
        """Reads an agent."""
        return AgentInfo.parse(self._transport.call("get_agent", path=_path(agent)))

    def remove(self, agent: str | AgentInfo) -> None:
        """Removes an agent. What it runs is given to others; a process that still runs under its id registers again."""
        self._transport.call("remove_agent", path=_path(agent))

    def drain(self, agent: str | AgentInfo, *, idempotency_key: str | None = None) -> AgentInfo:
        """Gives an agent nothing more; what it runs goes on."""
        return self._command("drain_agent", agent, idempotency_key)

    def undrain(self, agent: str | AgentInfo, *, idempotency_key: str | None = None) -> AgentInfo:
        """Gives an agent tasks again."""
        return self._command("undrain_agent", agent, idempotency_key)

    def _command(self, operation: str, agent: str | AgentInfo, idempotency_key: str | None) -> AgentInfo:
        answer = self._transport.call(operation, path=_path(agent), idempotency_key=idempotency_key)
        return AgentInfo.parse(answer)

    def leave(
        self, agent: str | AgentInfo, session: str, *, idempotency_key: str | None = None
    ) -> None:
        """Ends a session: what it still holds is given to others without costing an attempt."""
        self._transport.call(
            "leave_agent", path=_path(agent), body={"session": session}, idempotency_key=idempotency_key
        )

    def poll(
        self,
        agent: str | AgentInfo,
        session: str,
        *,
        max: int | None = None,
        wait_ms: int | None = None,
        have: Sequence[str] = (),
        results: Sequence[Mapping[str, Any]] = (),
    ) -> Polled:
        """Hands results in, then takes up to `max` tasks, for which it waits up to `wait_ms`.

        `session` names the process; a newer one of the same agent fences the older. `have` are the executions that it
        runs: others that it holds are delivered again. A poll ends the one before it that still waits.
        """
        body = {**given(session=session, max=max, wait_ms=wait_ms), "have": [*have], "results": [*results]}
        timeout = self._transport.timeout
        if isinstance(wait_ms, int):
            timeout += wait_ms / 1000
        return Polled.parse(
            self._transport.call("poll_agent", path=_path(agent), body=body, timeout=timeout)
        )

    def heartbeat(
        self, agent: str | AgentInfo, executions: Sequence[Mapping[str, Any]], *, session: str | None = None
    ) -> Heard:
        """Keeps the leases of executions, `{execution_id, lease_token}` each, and says what they have to say:
        `progress`, `logs`, `usage`, `checkpoint`."""
        body = {**given(session=session), "executions": [*executions]}
        return Heard.parse(self._transport.call("heartbeat_agent", path=_path(agent), body=body))


def _path(agent: str | AgentInfo) -> dict[str, str | int]:
    return {"id": ident(agent, "agent")}
