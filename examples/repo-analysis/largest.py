"""Lists the largest files of the tree, and those whose versions take the most room in history.

History counts each version of a file at its full size, before Git compresses it; deleted files are in it.
"""

from __future__ import annotations

import sys
from typing import Dict, List, Optional, Tuple

from common import Job, Json, git, git_lines, main, progress, text

SHOWN = 20
# Listing every object ever committed takes about a second per 100,000; beyond this it is left out.
MAX_OBJECTS = 400_000


def largest(job: Job) -> Tuple[Json, Json]:
    """The largest files now, and the largest by all their versions."""
    snapshot = job.load("snapshot")
    files = sorted(snapshot["files"], key=lambda file: (-file["size"], file["path"]))[:SHOWN]
    tree = [{"path": file["path"], "size": file["size"]} for file in files]
    history, note = largest_of_history(snapshot)
    result = {"tree": tree, "history": history, "history_note": note}
    largest_now = tree[0]["size"] if tree else 0
    return result, {"largest_bytes": largest_now, "largest_in_history_bytes": history[0]["size"] if history else 0}


def largest_of_history(snapshot: Json) -> Tuple[List[Json], Optional[str]]:
    """The paths whose versions are the largest together, or why they were not looked for."""
    top, head = snapshot["top"], snapshot["head"]
    if head is None:
        return [], "the repository has no commits"
    objects = object_count(top)
    if objects > MAX_OBJECTS:
        return [], f"its {objects:,} objects are more than the limit of {MAX_OBJECTS:,}"
    names = names_of_objects(top)
    sizes = sizes_of_blobs(top, names)
    # Cut where `rev-list` cuts.
    present = {path.split("\n")[0] for path in text(git(top, "ls-tree", "-r", "-z", "--name-only", head)).split("\0")}
    paths: Dict[str, Json] = {}
    for oid, size in sizes.items():
        path = names[oid]
        row = paths.setdefault(path, {"path": path, "size": 0, "versions": 0, "present": path in present})
        row["size"] += size
        row["versions"] += 1
    return sorted(paths.values(), key=lambda row: (-row["size"], row["path"]))[:SHOWN], None


def object_count(top: str) -> int:
    """How many objects the repository has, loose and packed."""
    counts = dict(line.split(": ", 1) for line in git_lines(top, "count-objects", "-v"))
    return int(counts.get("count", 0)) + int(counts.get("in-pack", 0))


def names_of_objects(top: str) -> Dict[str, str]:
    """Each named object that a commit reaches, with one path that it had. Git cuts a path at a line end."""
    progress(10, "walking the history")
    names = {}
    for line in git(top, "rev-list", "--objects", "--all", "HEAD").split(b"\n"):
        oid, _, path = line.partition(b" ")
        if path:
            names[oid.decode("ascii")] = text(path)
    return names


def sizes_of_blobs(top: str, names: Dict[str, str]) -> Dict[str, int]:
    """The size in bytes of each of the objects that is a blob."""
    progress(50, f"measuring {len(names)} objects")
    answer = git(top, "cat-file", "--batch-check", "--buffer", stdin="".join(oid + "\n" for oid in names))
    sizes = {}
    for line in answer.decode("ascii", "replace").split("\n"):
        fields = line.split()
        if len(fields) == 3 and fields[1] == "blob":
            sizes[fields[0]] = int(fields[2])
    return sizes


if __name__ == "__main__":
    sys.exit(main("largest", largest))
