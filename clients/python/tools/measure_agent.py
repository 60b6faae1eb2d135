"""How many tasks that do nothing one Python agent runs a second.

    PENSUM_BIN=target/release/pensum python3 clients/python/tools/measure_agent.py [--tasks 20000] [--max 200] [--rounds 3]

The node keeps its tasks in a file and acknowledges an end once it is on disk. The agent is a process of its own, with one
connection. What counts is from the moment at which the queue of waiting tasks is let go until the last has ended.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pensum import Client, NewTask

MODULE = """
from pensum.agent import task

@task(name="measured")
async def measured() -> None:
    pass
"""


def measure(client: Client, tasks: int) -> float:
    """Tasks a second, from the moment at which they may start until the last has ended."""
    client.queues.pause("measured")
    completed = client.queues.stats().completed_tasks + tasks
    for begin in range(0, tasks, 5000):
        batch = [NewTask("measured", queue="measured") for _ in range(begin, min(begin + 5000, tasks))]
        client.tasks.create_batch(batch)
    client.queues.resume("measured")
    began = time.monotonic()
    while client.queues.stats().completed_tasks < completed:
        time.sleep(0.01)
    return tasks / (time.monotonic() - began)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, default=20_000, help="how many tasks a round has")
    options.add_argument("--max", type=int, default=200, help="how many the agent runs at once")
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "measured.py").write_text(MODULE)
        with Client.embedded(db=place / "measured.db") as client:
            command = [sys.executable, "-m", "pensum.agent.cli", "run", "measured", "--id", "measured", "--max", str(asked.max)]
            path = os.pathsep.join(filter(None, [directory, os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "PENSUM_URL": client.url, "PYTHONPATH": path}
            agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            while not list(client.agents.list(status="idle")):
                if agent.poll() is not None:
                    sys.exit("the agent could not start")
                time.sleep(0.05)
            client.add_queue("measured")
            rates = []
            for number in range(asked.rounds):
                rates.append(measure(client, asked.tasks))
                print(f"round {number + 1}: {rates[-1]:,.0f} tasks a second", flush=True)
            agent.terminate()
            agent.wait()
    print(f"median: {median(rates):,.0f} tasks a second")


if __name__ == "__main__":
    main()
