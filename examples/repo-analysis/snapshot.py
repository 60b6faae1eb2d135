"""Lists what the index of the repository tracks, so that every later step sees the same files.

While another Git command is changing the index, `.git/index.lock` exists, and the index and HEAD may be half
of the old state and half of the new. The step then fails and asks for another attempt; the plan retries it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from common import Job, Json, StepError, TryAgain, git, git_lines, main, show, text

# Copies of other projects, and what tools wrote: listed by size, left out of the counts.
VENDORED = re.compile(
    r"(^|/)(node_modules|bower_components|vendor|vendored|third[-_]party|\.yarn|dist-packages|site-packages)/"
    r"|\.min\.(js|css)$|\.pb\.go$|_pb2\.py$",
    re.IGNORECASE,
)
REGULAR_MODES = ("100644", "100755", "100664")
SYMLINK_MODE = "120000"
SUBMODULE_MODE = "160000"


def snapshot(job: Job) -> Tuple[Json, Json]:
    """The state of the repository: where it is, its HEAD, and each tracked file with its object id and size."""
    top, bare = locate(job.repo)
    index = Path(git_path(top, "index"))
    refuse_locked(Path(str(index) + ".lock"))
    before = fingerprint(index)
    head = head_commit(top)
    listing = git(top, "ls-tree", "-r", "-z", head) if bare and head else git(top, "ls-files", "--stage", "-z")
    files, counts = tracked_files(top, listing, head)
    refuse_locked(Path(str(index) + ".lock"))
    if fingerprint(index) != before or head_commit(top) != head:
        raise TryAgain("the index changed while it was read: another Git command has just run; trying again")
    result = {
        "top": top,
        "name": repository_name(top, bare),
        "bare": bare,
        "head": head,
        "branch": branch(top),
        "shallow": git_lines(top, "rev-parse", "--is-shallow-repository") == ["true"],
        "taken_at": int(time.time()),
        "files": files,
        "counts": counts,
    }
    return result, {"head": head, **counts}


def locate(repo: str) -> Tuple[str, bool]:
    """The top directory of the repository that contains `repo`, and whether it is bare."""
    if not os.path.isdir(repo):
        raise StepError(f"{show(repo)} is not a directory: name a Git repository with --var repo=PATH")
    repo = os.path.abspath(repo)
    bare = git_lines(repo, "rev-parse", "--is-bare-repository") == ["true"]
    inside = git_lines(repo, "rev-parse", "--is-inside-work-tree") == ["true"]
    # Inside `.git` itself there is no work tree, and the index is that of the directory above.
    question = "--show-toplevel" if inside else "--absolute-git-dir"
    return text(git(repo, "rev-parse", question).rstrip(b"\n")), bare


def repository_name(top: str, bare: bool) -> str:
    """The last part of the path, as people call the repository."""
    name = os.path.basename(top)
    if name == ".git" or not name:
        name = os.path.basename(os.path.dirname(top)) or top
    return name[:-4] if bare and name.endswith(".git") else name


def git_path(top: str, name: str) -> str:
    """Where Git keeps a file of its own; not always below `.git`, as in linked work trees."""
    return os.path.join(top, text(git(top, "rev-parse", "--git-path", name).rstrip(b"\n")))


def refuse_locked(lock: Path) -> None:
    """Ask for another attempt while a Git command holds the index."""
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return
    raise TryAgain(
        f"another Git command is changing the index ({show(str(lock))} exists, {max(0, age):.0f} s old); "
        "trying again. If no Git command is running, delete that file"
    )


def fingerprint(index: Path) -> Optional[Tuple[int, int, int]]:
    """Changes whenever Git replaces the index, which it does by renaming a new file over it."""
    try:
        status = index.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def head_commit(top: str) -> Optional[str]:
    """The commit that HEAD names, or nothing in a repository without commits."""
    try:
        return git_lines(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")[0]
    except (StepError, IndexError):
        return None


def branch(top: str) -> Optional[str]:
    """The branch that HEAD is on, if it is on one."""
    try:
        return text(git(top, "symbolic-ref", "--short", "--quiet", "HEAD").rstrip(b"\n"))
    except StepError:
        return None


def tracked_files(top: str, listing: bytes, head: Optional[str]) -> Tuple[List[Json], Json]:
    """The regular files of a listing, and how many entries of each kind there were."""
    counts = {"files": 0, "bytes": 0, "symlinks": 0, "submodules": 0, "conflicts": 0, "missing": 0}
    chosen: Dict[str, str] = {}
    for mode, oid, stage, path in entries(listing):
        if mode == SUBMODULE_MODE:
            counts["submodules"] += 1
        elif mode == SYMLINK_MODE:
            counts["symlinks"] += 1
        elif mode in REGULAR_MODES and path not in chosen:
            # Of the sides of a conflict the first stands for the file.
            counts["conflicts"] += stage != 0
            chosen[path] = oid
    committed = committed_objects(top, head)
    sizes = object_sizes(top, sorted(set(chosen.values())))
    files: List[Json] = []
    for path, oid in chosen.items():
        if oid not in sizes:
            counts["missing"] += 1
            continue
        vendored = bool(VENDORED.search(path))
        unchanged = committed.get(path) == oid
        files.append({"path": path, "oid": oid, "size": sizes[oid], "vendored": vendored, "committed": unchanged})
    counts["files"] = len(files)
    counts["bytes"] = sum(sizes[file["oid"]] for file in files)
    return files, counts


def entries(listing: bytes) -> Iterator[Tuple[str, str, int, str]]:
    """(mode, object id, stage, path) of each entry of `git ls-files --stage -z` or `git ls-tree -z`."""
    for entry in listing.split(b"\0"):
        if not entry:
            continue
        about, path = entry.split(b"\t", 1)
        fields = about.decode("ascii").split()
        if fields[1] in ("blob", "commit"):
            yield fields[0], fields[2], 0, text(path)
        else:
            yield fields[0], fields[1], int(fields[2]), text(path)


def committed_objects(top: str, head: Optional[str]) -> Dict[str, str]:
    """The object id of each path in HEAD."""
    if head is None:
        return {}
    return {path: oid for _, oid, _, path in entries(git(top, "ls-tree", "-r", "-z", head))}


def object_sizes(top: str, oids: List[str]) -> Dict[str, int]:
    """The size in bytes of each object that the repository has; a partial clone lacks some."""
    if not oids:
        return {}
    answer = git(top, "cat-file", "--batch-check", "--buffer", stdin="\n".join(oids) + "\n")
    sizes = {}
    for line in answer.decode("ascii", "replace").split("\n"):
        fields = line.split()
        if len(fields) == 3 and fields[1] == "blob":
            sizes[fields[0]] = int(fields[2])
    return sizes


if __name__ == "__main__":
    sys.exit(main("snapshot", snapshot))
