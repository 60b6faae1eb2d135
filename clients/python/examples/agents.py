"""Two agents, one of which a task prefers, and a task that takes longer than it may.

    PENSUM_BIN=target/debug/pensum python3 agents.py
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from pensum import Client
from pensum.agent import Agent, Context, task


@task(name="design_system")
def sync_tokens(ctx: Context, figma_file_id: str) -> str:
    return f"{figma_file_id} synchronized"


@task(timeout=0.3, retries=2, retry={"strategy": "fixed", "delay": 0.1})
def long_running(ctx: Context) -> None:
    while True:
        # A thread cannot be stopped from outside; it looks for itself whether its time is over.
        ctx.check()
        time.sleep(0.01)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Client.embedded(db=Path(directory) / "agents.db") as client:
        coordinator = Agent("design_coordinator", [sync_tokens], max_concurrent=1, url=client.url)
        helper = Agent("helper", [sync_tokens, long_running], max_concurrent=3, url=client.url)
        threads = [threading.Thread(target=agent.run) for agent in (coordinator, helper)]
        for thread in threads:
            thread.start()
        while len(list(client.agents.list(status="idle"))) < 2:
            time.sleep(0.05)

        preferred = sync_tokens.options(agent_id="design_coordinator").enqueue(client, figma_file_id="abc123")
        print(client.tasks.result(preferred, timeout=60))
        executors = [execution.executor_id for execution in client.tasks.executions(preferred)]
        print("it ran on", *executors)

        overdue = client.tasks.wait(long_running.enqueue(client), timeout=60)
        assert overdue.error
        print(f"{overdue.status} after {overdue.attempt} attempts: {overdue.error.message}")

        for agent, thread in zip((coordinator, helper), threads):
            agent.stop()
            thread.join()
        assert executors == ["design_coordinator"]
        assert overdue.error.type == "timeout" and overdue.retry_count == 3


if __name__ == "__main__":
    main()
