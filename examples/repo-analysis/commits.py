"""Counts commits by week and by year, in UTC, weeks beginning on Monday."""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import List, NamedTuple, Optional, Tuple

from common import Job, Json, git, main, text

WEEKS_SHOWN = 52
# Older commits than these are not counted; Git lists some 50,000 in a second.
MAX_COMMITS = 100_000
DAY = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Commit(NamedTuple):
    """One commit: when it was made, and by whom, after `.mailmap`."""

    time: int
    author: str
    email: str
    merge: bool


def log(top: str, head: Optional[str]) -> List[Commit]:
    """The newest commits that `head` reaches, newest first."""
    if head is None:
        return []
    form = "--format=%ct%x00%aN%x00%aE%x00%P"
    output = git(top, "log", "--use-mailmap", "--encoding=UTF-8", f"--max-count={MAX_COMMITS}", form, head, "--")
    latest = time.time() + DAY
    commits = []
    for line in output.split(b"\n"):
        fields = line.split(b"\0")
        # A forged date, before 1970 or in the future, must not stretch the picture over centuries.
        if len(fields) == 4 and fields[0].isdigit() and int(fields[0]) <= latest:
            commits.append(Commit(int(fields[0]), text(fields[1]), text(fields[2]), b" " in fields[3]))
    return commits


def week_of(timestamp: int) -> int:
    """The number of the week since that of Monday, 29 December 1969."""
    return (timestamp // DAY + 3) // 7


def monday(week: int) -> str:
    """The first day of a week, as YYYY-MM-DD."""
    return (EPOCH + timedelta(days=week * 7 - 3)).strftime("%Y-%m-%d")


def by_week(commits: List[Commit]) -> List[Json]:
    """Commits in each of the last weeks, the last being that of the newest commit; quiet weeks included."""
    if not commits:
        return []
    counts = Counter(week_of(commit.time) for commit in commits)
    last = max(counts)
    first = max(min(counts), last - WEEKS_SHOWN + 1)
    return [{"week": monday(week), "commits": counts[week]} for week in range(first, last + 1)]


def by_year(commits: List[Commit]) -> List[Json]:
    """Commits in each year that has any."""
    counts = Counter((EPOCH + timedelta(seconds=commit.time)).year for commit in commits)
    return [{"year": year, "commits": counts[year]} for year in sorted(counts)]


def commits(job: Job) -> Tuple[Json, Json]:
    """The activity of the repository over time."""
    snapshot = job.load("snapshot")
    found = log(snapshot["top"], snapshot["head"])
    times = [commit.time for commit in found]
    merges, weeks = sum(commit.merge for commit in found), by_week(found)
    result = {
        "commits": len(found),
        "merges": merges,
        "capped": len(found) >= MAX_COMMITS,
        "first": min(times, default=None),
        "last": max(times, default=None),
        "weeks": weeks,
        "years": by_year(found),
    }
    return result, {"commits": len(found), "merges": merges, "weeks": len(weeks)}


if __name__ == "__main__":
    sys.exit(main("commits", commits))
