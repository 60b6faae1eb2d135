"""Counts commits by author, one line per e-mail address after `.mailmap`. Addresses stay out of the result."""

from __future__ import annotations

import sys
from typing import Dict, List, Tuple

from commits import Commit, log, week_of
from common import Job, Json, main, show

KEPT = 100


def by_author(commits: List[Commit]) -> List[Json]:
    """Commits, first and last commit, and active weeks of each author, most commits first."""
    authors: Dict[str, List[Commit]] = {}
    for commit in commits:
        authors.setdefault(commit.email.lower() or commit.author, []).append(commit)
    rows = []
    for own in authors.values():
        times = [commit.time for commit in own]
        newest = max(own, key=lambda commit: commit.time)
        rows.append(
            {
                "name": newest.author,
                "commits": len(own),
                "first": min(times),
                "last": max(times),
                "active_weeks": len({week_of(moment) for moment in times}),
            }
        )
    return sorted(rows, key=lambda row: (-row["commits"], row["name"]))


def half_of_the_work(rows: List[Json]) -> int:
    """The smallest number of authors who made half of the commits: how few people the project leans on."""
    total, sum_so_far = sum(row["commits"] for row in rows), 0
    for number, row in enumerate(rows, 1):
        sum_so_far += row["commits"]
        if sum_so_far * 2 >= total:
            return number
    return 0


def contributors(job: Job) -> Tuple[Json, Json]:
    """Who made the commits."""
    snapshot = job.load("snapshot")
    rows = by_author(log(snapshot["top"], snapshot["head"]))
    half = half_of_the_work(rows)
    result = {
        "authors": len(rows),
        "commits": sum(row["commits"] for row in rows),
        "half_by": half,
        "contributors": rows[:KEPT],
    }
    first = show(rows[0]["name"], 80) if rows else None
    return result, {"authors": len(rows), "half_of_commits_by": half, "most_commits_by": first}


if __name__ == "__main__":
    sys.exit(main("contributors", contributors))
