"""Finds the notes that authors left for later: TODO, FIXME, XXX and HACK.

A marker counts where it begins a note: after a comment sign, or followed by a colon or an owner in
parentheses. A list of the four words, a quoted word or a word inside another is none.
"""

from __future__ import annotations

import re
import sys
from typing import Iterator, List, Tuple

from common import Contents, Job, Json, main, text
from secret_scan import scrub

KEPT = 2000
MAX_TEXT = 160
# A longer line is minified or generated.
MAX_LINE = 2000
MARKERS = (b"TODO", b"FIXME", b"XXX", b"HACK")
NOTE = re.compile(
    rb"(?P<before>^|.*?[^\w/|\"'`.-])(?P<marker>TODO|FIXME|XXX|HACK)"
    rb"(?:\((?P<owner>[^()\n]{1,60})\))?(?P<colon>\s{0,2}:|(?=\s|-|!|$))[\s:-]*(?P<text>.*)"
)
WORD = re.compile(rb"\b(?:TODO|FIXME|XXX|HACK)\b")
COMMENT_SIGN = re.compile(rb"//|#|/\*|^\s*\*|--|;|%|<!--|\(\*|\{-|\"\"\"|'''|^\s*(?:rem|REM|dnl|\.\\\")\s")
# The notes in a patch are those of what it patches.
PATCH = re.compile(r"\.(patch|diff)$")
COMMENT_END = re.compile(r"\s*(\*/|-->|\*\)|-\}|\"\"\"|''')\s*$")


def parse(data: bytes) -> Iterator[Json]:
    """Each note of one file: line number, marker, owner if named, and text."""
    if not any(marker in data for marker in MARKERS):
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > MAX_LINE or not any(marker in line for marker in MARKERS):
            continue
        match = NOTE.match(line)
        if match and begins_a_note(match):
            owner = match.group("owner")
            yield {
                "line": number,
                "marker": text(match.group("marker")),
                "owner": text(owner) if owner else None,
                "text": cut(scrub(COMMENT_END.sub("", text(match.group("text")).strip()))),
            }


def begins_a_note(match: "re.Match[bytes]") -> bool:
    """Whether the marker is the first on its line, and stands in a comment or is written as a label."""
    if WORD.search(match.group("before")):
        return False
    labelled = match.group("colon").strip() == b":" or match.group("owner") is not None
    return labelled or bool(COMMENT_SIGN.search(match.group("before")))


def cut(note: str) -> str:
    """The note in at most `MAX_TEXT` characters."""
    return note if len(note) <= MAX_TEXT else note[: MAX_TEXT - 1] + "…"


def todos(job: Job) -> Tuple[Json, Json]:
    """All notes of the snapshot, in the order of the files."""
    snapshot = job.load("snapshot")
    own = [file for file in snapshot["files"] if not file["vendored"] and not PATCH.search(file["path"])]
    contents = Contents(snapshot["top"], own)
    counts = {text(marker): 0 for marker in MARKERS}
    kept: List[Json] = []
    for file, data in contents:
        for note in parse(data):
            counts[note["marker"]] += 1
            if len(kept) < KEPT:
                kept.append(dict(note, path=file["path"], committed=file["committed"]))
    result = {"counts": counts, "total": sum(counts.values()), "notes": kept, "skipped": contents.skipped}
    return result, {"total": result["total"], **counts}


if __name__ == "__main__":
    sys.exit(main("todos", todos))
