"""Four tasks of four priorities in a queue that runs one at a time.

The queue is paused while they are submitted, least urgent first. Once it is resumed, they start in the order of their
priorities.

    PENSUM_BIN=target/debug/pensum python3 priorities.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pensum import Client, TaskPriority

ERRANDS = [
    ("Clean old logs", TaskPriority.LOW),
    ("Count the day's visits", TaskPriority.NORMAL),
    ("Answer a visitor", TaskPriority.HIGH),
    ("Look into a break-in", TaskPriority.CRITICAL),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Client.embedded(db=Path(directory) / "errands.db") as client:
        client.add_queue("errands", max_concurrent=1)
        client.queues.pause("errands")
        tasks = [
            client.create_task("sleep", {"seconds": 0.05}, name=name, queue="errands", priority=priority)
            for name, priority in ERRANDS
        ]
        print(f"{client.queues.get('errands').tasks['ready']} tasks wait, none has started")
        client.queues.resume("errands")
        client.process_queue("errands", timeout=60)

        ended = [client.get_task(task) for task in tasks]
        starts = sorted((task.started_at, task.priority, task.name) for task in ended if task.started_at)
        for start, priority, name in starts:
            print(f"{start:%H:%M:%S.%f}  {priority:8}  {name}")
        order = [priority for _, priority, _ in starts]
        assert order == ["critical", "high", "normal", "low"], order


if __name__ == "__main__":
    main()
