"""Asks `git blame` who wrote each TODO and when, as far as a few seconds reach.

Files with the most notes come first. A file that differs from HEAD is left out: its line numbers do.
"""

from __future__ import annotations

import sys
import time
from typing import Dict, List, Tuple

from common import Job, Json, StepError, git, main, progress, text

BUDGET_SECONDS = 5.0
# The arguments of one blame; beyond this many lines of a file the rest go without an age.
MAX_LINES = 200


def todo_age(job: Job) -> Tuple[Json, Json]:
    """Author and time of each note that the budget reaches."""
    snapshot, todos = job.load("snapshot"), job.load("todos")
    files = lines_by_file(todos["notes"])
    deadline = time.monotonic() + BUDGET_SECONDS
    ages: List[Json] = []
    done = 0
    for path, lines in files:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        progress(100.0 * done / len(files), f"{done} of {len(files)} files")
        try:
            for line, about in blame(snapshot, path, lines[:MAX_LINES], left).items():
                ages.append(dict(about, path=path, line=line))
        except StepError:
            # Too long a history for what is left of the budget, or a path that blame cannot follow.
            continue
        finally:
            done += 1
    unknown = len(todos["notes"]) - len(ages)
    return {"ages": ages, "unknown": unknown}, {"dated": len(ages), "undated": unknown}


def lines_by_file(notes: List[Json]) -> List[Tuple[str, List[int]]]:
    """The committed files with notes and the lines of these, most notes first."""
    files: Dict[str, List[int]] = {}
    for note in notes:
        if note["committed"]:
            files.setdefault(note["path"], []).append(note["line"])
    return sorted(files.items(), key=lambda item: (-len(item[1]), item[0]))


def blame(snapshot: Json, path: str, lines: List[int], timeout: float) -> Dict[int, Json]:
    """Author and time of the given lines of a file in HEAD."""
    ranges = [f"-L{line},{line}" for line in lines]
    # Without --no-textconv the repository's configuration could name a program to run on each file.
    options = ["--line-porcelain", "--no-textconv", *ranges]
    return parse(git(snapshot["top"], "blame", *options, snapshot["head"], "--", path, timeout=timeout))


def parse(porcelain: bytes) -> Dict[int, Json]:
    """Read `git blame --line-porcelain`: a header, fields, then the line itself after a tab."""
    found: Dict[int, Json] = {}
    header = True
    line, author, when = 0, "", 0
    for row in porcelain.split(b"\n"):
        if row.startswith(b"\t"):
            found[line] = {"author": author, "time": when}
            header = True
        elif header and row:
            line = int(row.split()[2])
            header = False
        elif row.startswith(b"author "):
            author = text(row[len(b"author ") :])
        elif row.startswith(b"author-time "):
            when = int(row.split()[1])
    return found


if __name__ == "__main__":
    sys.exit(main("todo_age", todo_age))
