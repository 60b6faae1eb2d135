#!/usr/bin/env python3
"""Makes src/pensum/_sync from src/pensum/_async, so that the two clients cannot drift apart.

tools/make_sync.py           writes the files
tools/make_sync.py --check   exits with 1 where they are not what would be written
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "pensum" / "_async"
TARGET = SOURCE.with_name("_sync")
# What the two do differently is written by hand.
BY_HAND = {"bridge.py"}
WORDS = [
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\bhttpx\.AsyncBaseTransport\b", "httpx.BaseTransport"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\ba(close|read|iter_bytes)\(", r"\1("),
    (r"to_thread\((\w[\w.]*)\)", r"\1()"),
    (r"^from \.bridge import to_thread\n", ""),
    (r"The asynchronous client\b.*\.", "The synchronous client."),
]
NOTE = "# Made from _async/{name} by tools/make_sync.py: change that one.\n"


def synchronous(name: str, text: str) -> str:
    """The synchronous form of a module."""
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return NOTE.format(name=name) + text


def main() -> int:
    stale = []
    for source in sorted(SOURCE.glob("*.py")):
        if source.name in BY_HAND:
            continue
        target = TARGET / source.name
        text = synchronous(source.name, source.read_text())
        if not target.exists() or target.read_text() != text:
            stale.append(target.name)
            if "--check" not in sys.argv[1:]:
                target.write_text(text)
    if stale and "--check" in sys.argv[1:]:
        print(f"run tools/make_sync.py: {', '.join(stale)} are not made from _async as it is", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
