"""Five stages of a pipeline, each of which waits for the one before.

All five are submitted at once. Nobody starts them one by one: a stage starts when the stage that it depends on has
completed, whatever its priority.

    PENSUM_BIN=target/debug/pensum python3 pipeline.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pensum import Client, NewTask, TaskPriority

STAGES = [
    ("ingest", "Take the recording in", TaskPriority.HIGH),
    ("analyse", "Analyse it", TaskPriority.HIGH),
    ("extract", "Extract the patterns", TaskPriority.NORMAL),
    ("consolidate", "Bring them together", TaskPriority.NORMAL),
    ("store", "Put the result away", TaskPriority.LOW),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Client.embedded(db=Path(directory) / "pipeline.db") as client:
        shell = 'echo "$1" >> journal && cat journal'
        stages = [
            NewTask(
                "command",
                {"program": "sh", "args": ["-c", shell, "sh", ref], "cwd": directory},
                ref=ref,
                name=name,
                priority=priority,
                depends_on=STAGES[index - 1][0] if index else None,
            )
            for index, (ref, name, priority) in enumerate(STAGES)
        ]
        ids = client.tasks.create_batch(stages)
        ended = client.tasks.wait_all(ids, timeout=60)
        for task in ended:
            print(f"{task.name}: {task.status}")
        print("the last stage saw:", ", ".join(ended[-1].result["stdout"].split()))

        assert all(task.completed for task in ended)
        assert ended[-1].result["stdout"].split() == [ref for ref, _, _ in STAGES]
        for before, after in zip(ended, ended[1:]):
            assert before.finished_at and after.started_at and before.finished_at <= after.started_at


if __name__ == "__main__":
    main()
