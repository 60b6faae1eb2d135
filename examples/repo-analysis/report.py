"""Writes what the steps found as one Markdown report.

Everything that comes out of the repository (names, paths, notes) is input: it is shown with its control
characters escaped and its Markdown and HTML signs disarmed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from common import Job, Json, StepError, progress, report_outcome, show, write_atomically

ROWS = 20
BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"
SPARKS = "▁▂▃▄▅▆▇█"
DAY = 86_400
# What could begin emphasis, code, a link, a table cell or a formula in the middle of a line.
SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//))")
NO_MAIN_LANGUAGE = {"CSV", "INI", "JSON", "Lock file", "Markdown", "Other", "SVG", "Text", "TOML", "XML", "YAML"}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
AGES = ((30, "under a month"), (182, "under half a year"), (365, "under a year"), (730, "under two years"))
OLDEST_AGE = "two years and more"


# Cells


def cell(value: str, limit: int = 100) -> str:
    """Text of the repository as inert Markdown, on one line."""
    inert = show(value, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", inert)


def number(value: int) -> str:
    """With separators between thousands."""
    return f"{value:,}"


def plural(count: int, noun: str, many: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{number(count)} {noun if count == 1 else many or noun + 's'}"


def size(value: float) -> str:
    """Bytes in the unit that keeps the number short."""
    for unit in UNITS:
        if value < 1024 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return ""


def percent(part: int, whole: int) -> str:
    """A share, with one digit after the point."""
    return f"{100.0 * part / whole:.1f} %" if whole else "–"


def bar(value: float, largest: float, width: int = BAR_WIDTH) -> str:
    """A bar of block characters, exact to an eighth of one; never empty for a value above zero."""
    if largest <= 0 or value <= 0:
        return ""
    eighths = max(1, round(value / largest * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def sparkline(values: Sequence[int]) -> str:
    """One character per value; a dot stands for zero."""
    top = max(values, default=0)
    return "".join("·" if v == 0 else SPARKS[min(7, int(v / top * 8 - 1e-9))] for v in values)


def day(timestamp: Optional[int]) -> str:
    """A time as a date in UTC."""
    if timestamp is None:
        return "–"
    try:
        return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=timestamp)).strftime("%Y-%m-%d")
    except OverflowError:
        return "–"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> List[str]:
    """A Markdown table. A head that ends in `>` aligns its column to the right."""
    names = [head.rstrip(">") for head in heads]
    rules = ["---:" if head.endswith(">") else "---" for head in heads]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join(rules) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def more(shown: int, total: int) -> List[str]:
    """A line that says how many rows a table left out."""
    return ["", f"{number(total - shown)} more are not shown."] if total > shown else []


def skipped(counts: Json) -> List[str]:
    """A line that says which files were not read, and why."""
    reasons = {
        "vendored": "vendored or generated",
        "binary": "binary",
        "too_large": "larger than 2 MiB",
        "over_budget": "beyond 256 MiB in all",
        "unreadable": "unreadable",
    }
    parts = [f"{number(counts[key])} {words}" for key, words in reasons.items() if counts.get(key)]
    return ["", "Not read: " + ", ".join(parts) + "."] if parts else []


# Sections


def languages_section(found: Json) -> List[str]:
    """Files and lines by language, with bars."""
    rows = found["languages"]
    if not rows:
        return ["No text files are tracked."] + skipped(found["skipped"])
    total, top = sum(row["lines"] for row in rows), max(row["lines"] for row in rows)
    lines = table(
        ["Language", "Files>", "Lines>", "Code>", "Comment>", "Blank>", "Share>", ""],
        (
            [
                row["language"],
                number(row["files"]),
                number(row["lines"]),
                number(row["lines"] - row["comment"] - row["blank"]),
                number(row["comment"]),
                number(row["blank"]),
                percent(row["lines"], total),
                bar(row["lines"], top),
            ]
            for row in rows[:ROWS]
        ),
    )
    return lines + more(ROWS, len(rows)) + skipped(found["skipped"])


def largest_section(found: Json) -> List[str]:
    """The largest files of the tree and of history."""
    if not found["tree"] and not found["history"]:
        return ["No files are tracked."]
    top = max((row["size"] for row in found["tree"]), default=0)
    lines = table(
        ["In the tree", "Size>", ""],
        ([cell(row["path"]), size(row["size"]), bar(row["size"], top, 16)] for row in found["tree"][:10]),
    )
    if found["history_note"]:
        return lines + ["", f"History was not searched: {cell(found['history_note'], 200)}."]
    lines += ["", "All versions together, before compression:", ""]
    rows = (
        [cell(row["path"]), number(row["versions"]), size(row["size"]), "yes" if row["present"] else "no longer"]
        for row in found["history"][:10]
    )
    return lines + table(["In history", "Versions>", "Size>", "In the tree"], rows)


def commits_section(found: Json) -> List[str]:
    """Commits over time as a line of small bars, and the last weeks as a table."""
    if not found["commits"]:
        return ["The repository has no commits yet."]
    weeks = found["weeks"]
    counts = [week["commits"] for week in weeks]
    capped = " (the newest; older ones are not counted)" if found["capped"] else ""
    first, last = day(found["first"]), day(found["last"])
    span = f"on {first}" if first == last else f"from {first} to {last}"
    lines = [f"{plural(found['commits'], 'commit')}{capped} {span}, {plural(found['merges'], 'merge')} among them.", ""]
    if len(weeks) > 1:
        lines += ["```text", sparkline(counts), "```", ""]
        highest = plural(max(counts), "commit")
        lines += [f"One sign per week, {weeks[0]['week']} to {weeks[-1]['week']}; the highest is {highest}.", ""]
    lines += bars("Week of", "week", weeks[-12:])
    if len(found["years"]) > 1:
        lines += [""] + bars("Year", "year", found["years"][-ROWS:])
    return lines


def bars(head: str, key: str, rows: List[Json]) -> List[str]:
    """A table of commits with bars."""
    top = max(row["commits"] for row in rows)
    return table(
        [head, "Commits>", ""], ([str(row[key]), number(row["commits"]), bar(row["commits"], top)] for row in rows)
    )


def contributors_section(found: Json) -> List[str]:
    """Who made the commits."""
    rows = found["contributors"]
    if not rows:
        return ["Nobody has committed yet."]
    top = rows[0]["commits"]
    made = "person made" if found["half_by"] == 1 else "people made"
    lines = [f"{plural(found['authors'], 'contributor')}; {found['half_by']} {made} half of the commits.", ""]
    lines += table(
        ["Name", "Commits>", "Share>", "Active weeks>", "First", "Last", ""],
        (
            [
                cell(row["name"], 60),
                number(row["commits"]),
                percent(row["commits"], found["commits"]),
                number(row["active_weeks"]),
                day(row["first"]),
                day(row["last"]),
                bar(row["commits"], top, 16),
            ]
            for row in rows[:ROWS]
        ),
    )
    return lines + more(ROWS, found["authors"])


def todos_section(found: Json, ages: Optional[Json], now: int) -> List[str]:
    """Notes left for later, the oldest first where their age is known."""
    if not found["total"]:
        return ["None."] + skipped(found["skipped"])
    known = {(row["path"], row["line"]): row for row in ages["ages"]} if ages else {}
    counts = ", ".join(f"{number(count)} {marker}" for marker, count in found["counts"].items() if count)
    lines = [f"{plural(found['total'], 'note')}: {counts}.", ""]
    if known:
        lines += age_table([now - row["time"] for row in known.values()]) + [""]
    notes = sorted(found["notes"], key=lambda note: known.get((note["path"], note["line"]), {}).get("time", now))
    rows = []
    for note in notes[:ROWS]:
        origin = known.get((note["path"], note["line"]))
        owner = note["owner"] or (origin["author"] if origin else "–")
        since = day(origin["time"]) if origin else "–"
        place = f"{cell(note['path'])}:{note['line']}"
        rows.append([place, note["marker"], cell(note["text"], 120) or "–", cell(owner, 40), since])
    lines += table(["Place", "Marker", "Note", "By", "Since"], rows)
    return lines + more(ROWS, found["total"]) + skipped(found["skipped"])


def age_table(ages: List[int]) -> List[str]:
    """How many notes are how old."""
    counts: Dict[str, int] = {label: 0 for _, label in AGES}
    counts[OLDEST_AGE] = 0
    for age in ages:
        counts[next((label for days, label in AGES if age < days * DAY), OLDEST_AGE)] += 1
    top = max(counts.values())
    return table(["Age", "Notes>", ""], ([label, number(count), bar(count, top)] for label, count in counts.items()))


def secrets_section(found: Json) -> List[str]:
    """Likely secrets, redacted."""
    if not found["findings"]:
        return ["None found in the tracked files. Their history was not searched."] + skipped(found["skipped"])
    total = sum(found["counts"].values())
    lines = [
        f"{plural(total, 'likely secret')} in the tracked files: "
        + ", ".join(f"{number(count)} of {level} confidence" for level, count in found["counts"].items() if count)
        + ". Values are redacted. Revoke a real one where it was issued: deleting it here leaves it in history.",
        "",
    ]
    rows = [
        [f"{cell(row['path'])}:{row['line']}", row["rule"], row["confidence"], cell(row["redacted"])]
        for row in found["findings"][: 2 * ROWS]
    ]
    lines += table(["Place", "Kind", "Confidence", "Value"], rows)
    return lines + more(2 * ROWS, total) + skipped(found["skipped"])


def dependencies_section(found: Json) -> List[str]:
    """Declared dependencies by ecosystem."""
    lines: List[str] = []
    for ecosystem, count in found["counts"].items():
        rows = [row for row in found["dependencies"] if row["ecosystem"] == ecosystem]
        lines += [f"### {ecosystem}: {number(count)}", ""]
        lines += table(["Name", "Version", "Kind", "Declared in"], (dependency_row(row) for row in rows[:100]))
        lines += more(100, count) + [""]
    lines = lines[:-1] or [f"{plural(found['manifests'], 'manifest')} found and no dependency declared."]
    for manifest in found["unreadable"][:ROWS]:
        lines += ["", f"Could not read {cell(manifest['path'])}: {cell(manifest['reason'])}"]
    return lines


def dependency_row(row: Json) -> List[str]:
    """One dependency as the cells of a table."""
    first, rest = row["manifests"][0], len(row["manifests"]) - 1
    where = cell(first) + (f" and {plural(rest, 'other')}" if rest else "")
    return [cell(row["name"]), cell(row["version"], 60), cell(row["kind"], 40), where]


# The report


def summary_section(snapshot: Json, results: Dict[str, Optional[Json]]) -> List[str]:
    """The figures at a glance."""
    rows = [["Tracked files", f"{number(snapshot['counts']['files'])} ({size(snapshot['counts']['bytes'])})"]]
    found = results["languages"]
    if found and found["languages"]:
        rows.append(["Lines", number(sum(row["lines"] for row in found["languages"]))])
        names = [row["language"] for row in found["languages"]]
        rows.append(["Main language", next((name for name in names if name not in NO_MAIN_LANGUAGE), names[0])])
    for name, label, key in (("commits", "Commits", "commits"), ("contributors", "Contributors", "authors")):
        found = results[name]
        if found:
            rows.append([label, number(found[key])])
    found = results["todos"]
    if found:
        rows.append(["Notes left for later", number(found["total"])])
    found = results["secret_scan"]
    if found:
        rows.append(["Likely secrets", " + ".join(f"{number(n)} {level}" for level, n in found["counts"].items())])
    found = results["dependencies"]
    if found:
        rows.append(["Declared dependencies", number(sum(found["counts"].values()))])
    return table(["Figure", "Value"], rows)


def heading(snapshot: Json) -> List[str]:
    """Title, and what state of the repository was analysed."""
    commit = f"commit {snapshot['head'][:12]}" if snapshot["head"] else "no commits yet"
    on = f" on branch {cell(snapshot['branch'])}" if snapshot["branch"] else ""
    made = datetime.fromtimestamp(snapshot["taken_at"], timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"# Repository analysis: {cell(snapshot['name'])}",
        "",
        f"The tracked files as of {made}, {commit}{on}.",
        "",
    ]
    counts = snapshot["counts"]
    notes = []
    if not counts["files"]:
        notes.append("the repository tracks no files")
    for key, words in (("submodules", "submodule"), ("symlinks", "symbolic link")):
        if counts[key]:
            notes.append(f"{plural(counts[key], words)} not followed")
    if counts["conflicts"]:
        notes.append(f"{plural(counts['conflicts'], 'file')} in conflict, taken in the first version")
    if counts["missing"]:
        notes.append(f"{plural(counts['missing'], 'file')} missing from this partial clone")
    if snapshot["shallow"]:
        notes.append("a shallow clone, so history figures cover only what it holds")
    return lines + ([f"Note: {'; '.join(notes)}.", ""] if notes else [])


def render(snapshot: Json, results: Dict[str, Optional[Json]]) -> str:
    """The report. A section whose step did not finish says so."""

    def section(title: str, name: str, write: Callable[[Json], List[str]]) -> List[str]:
        found = results[name]
        task = name.replace("_", "-")
        body = write(found) if found is not None else [f"This step did not finish: see the task {task} of the run."]
        return ["", f"## {title}", ""] + body

    def todos(found: Json) -> List[str]:
        return todos_section(found, results["todo_age"], snapshot["taken_at"])

    lines = heading(snapshot) + summary_section(snapshot, results)
    lines += section("Languages", "languages", languages_section)
    lines += section("Largest files", "largest", largest_section)
    lines += section("Commits", "commits", commits_section)
    lines += section("Contributors", "contributors", contributors_section)
    lines += section("Notes left for later", "todos", todos)
    lines += section("Secrets", "secret_scan", secrets_section)
    lines += section("Dependencies", "dependencies", dependencies_section)
    return "\n".join(lines) + "\n"


STEPS = ("languages", "largest", "commits", "contributors", "todos", "todo_age", "secret_scan", "dependencies")


def report(job: Job, out: Path) -> Json:
    """Read every result that there is and write the report."""
    snapshot = job.load_if_any("snapshot")
    if snapshot is None:
        raise StepError(
            "there is nothing to report, for the files were not listed: see the failed task before this one"
        )
    results = {name: job.load_if_any(name) for name in STEPS}
    document = render(snapshot, results).encode("utf-8", "backslashreplace")
    progress(90, "writing the report")
    if out.is_dir():
        raise StepError(f"{show(str(out))} is a directory: name a file with --var out=FILE")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, document)
    except OSError as error:
        raise StepError(
            f"cannot write {show(str(out))}: {error.strerror}: name another file with --var out=FILE"
        ) from None
    unfinished = [name for name in STEPS if results[name] is None]
    return {"report": show(os.path.abspath(str(out))), "bytes": len(document), "unfinished": unfinished}


def parse_arguments(argv: Optional[List[str]] = None) -> Tuple[Path, Path]:
    """Where the results are, and where the report goes."""
    parser = argparse.ArgumentParser(prog="report", description="Write what the steps found as one Markdown report.")
    parser.add_argument("--run-dir", required=True, type=Path, help="where the steps keep their results")
    parser.add_argument("--out", required=True, type=Path, help="the report")
    options = parser.parse_args(argv)
    return options.run_dir, options.out


if __name__ == "__main__":
    run_dir, out = parse_arguments()
    sys.exit(report_outcome("report", lambda: report(Job(".", run_dir), out)))
