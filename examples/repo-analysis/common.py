"""What every step shares: Git, the snapshot, JSON files, progress, and text that is safe to show.

A step is a function that takes a `Job` and returns two values: the full result, which goes to
`RUN_DIR/NAME.json` for the steps after it, and a small summary, which goes to stdout and so becomes the
result of the task.

Paths in a repository are bytes. Inside these scripts they are strings with `surrogateescape`, which loses
nothing; `show` makes them fit to print.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple

Json = Dict[str, Any]

# A text file larger than this (2 MiB) is data or generated; it is listed by size but not read.
MAX_FILE_BYTES = 2 * 1024 * 1024
# A step that reads file contents stops here (256 MiB) and says so.
MAX_READ_BYTES = 256 * 1024 * 1024
# Git itself decides by the first 8,000 bytes whether a file is binary.
BINARY_PROBE_BYTES = 8000
GIT_TIMEOUT_SECONDS = 60.0

# EX_TEMPFAIL of sysexits.h: the same command may succeed a little later.
EXIT_TRY_AGAIN = 75

# A repository's own configuration may name programs to run; none of these steps needs one.
SAFE_CONFIG = ("-c", "core.fsmonitor=false", "-c", "log.showSignature=false", "-c", "blame.ignoreRevsFile=")

# Set inside Git hooks, where they would override `-C`.
LOCATION_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
)


class StepError(Exception):
    """A step cannot be done. The message says what was asked, what was wrong and what to do."""


class TryAgain(StepError):
    """A step cannot be done now, and the next attempt may well succeed."""


class Job:
    """One step's inputs: the repository as the user named it, and the private directory of the run."""

    def __init__(self, repo: str, run_dir: Path) -> None:
        self.repo = repo
        self.run_dir = run_dir

    def load(self, name: str) -> Json:
        """The result of an earlier step."""
        path = self.run_dir / (name + ".json")
        try:
            result: Json = json.loads(path.read_text(encoding="utf-8"))
            return result
        except FileNotFoundError:
            raise StepError(f"{path} does not exist: the step {name} has not finished") from None
        except ValueError as error:
            raise StepError(f"{path} is not JSON ({error}): run the step {name} again") from None

    def load_if_any(self, name: str) -> Optional[Json]:
        """The result of an earlier step, or nothing where that step did not finish."""
        return self.load(name) if (self.run_dir / (name + ".json")).exists() else None

    def save(self, name: str, result: Json) -> None:
        """Keep a step's result for the steps after it."""
        text = json.dumps(result, ensure_ascii=True, separators=(",", ":"))
        write_atomically(self.run_dir / (name + ".json"), text.encode("ascii"))


Step = Callable[[Job], Tuple[Json, Json]]


def main(name: str, step: Step, argv: Optional[List[str]] = None) -> int:
    """Run one step as a program; the exit code."""
    parser = argparse.ArgumentParser(prog=name, description=sys.modules["__main__"].__doc__)
    parser.add_argument("--repo", default=".", help="the Git repository to analyse (default: here)")
    parser.add_argument("--run-dir", required=True, type=Path, help="where the steps keep their results")
    options = parser.parse_args(argv)
    return report_outcome(name, lambda: run_step(name, step, Job(options.repo, options.run_dir)))


def run_step(name: str, step: Step, job: Job) -> Json:
    """Do the step, keep its result, and return its summary."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    result, summary = step(job)
    job.save(name, result)
    return summary


def report_outcome(name: str, work: Callable[[], Json]) -> int:
    """Print the summary of the work as JSON, or its failure as one line on stderr; the exit code."""
    try:
        summary = work()
    except TryAgain as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_TRY_AGAIN
    except (StepError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary, ensure_ascii=True))
    return 0


def progress(percent: float, message: str) -> None:
    """Tell the engine how far this task is."""
    print(f"pensum:progress {min(100, max(0, int(percent)))} {show(message)}", file=sys.stderr, flush=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new and never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(str(temporary), str(path))
    except BaseException:
        temporary.unlink()
        raise


# Git


def git_environment() -> Dict[str, str]:
    """The environment of every Git call: no prompt, no network, no lock, no message in another language."""
    environment = {key: value for key, value in os.environ.items() if key not in LOCATION_VARIABLES}
    environment.update(
        GIT_OPTIONAL_LOCKS="0",
        GIT_NO_LAZY_FETCH="1",
        GIT_TERMINAL_PROMPT="0",
        GIT_LITERAL_PATHSPECS="1",
        LC_ALL="C",
    )
    return environment


def git(top: str, *arguments: str, stdin: str = "", timeout: float = GIT_TIMEOUT_SECONDS) -> bytes:
    """What one Git command prints, given `stdin`."""
    command = [b"git", b"-C", raw(top)] + [raw(argument) for argument in SAFE_CONFIG + arguments]
    try:
        done = subprocess.run(
            command,
            env=git_environment(),
            input=raw(stdin),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise StepError(f"git {arguments[0]} in {show(top)} took longer than {timeout:.0f} s") from None
    if done.returncode != 0:
        reason = done.stderr.decode("utf-8", "replace").strip().split("\n")[0] or f"exit code {done.returncode}"
        raise StepError(f"git {arguments[0]} in {show(top)} failed: {show(reason)}")
    return done.stdout


def git_lines(top: str, *arguments: str) -> List[str]:
    """What one Git command prints, line by line."""
    return [line for line in text(git(top, *arguments)).split("\n") if line]


class Contents:
    """The text files of a snapshot with their contents, read by object id through one Git process.

    Reading objects and not the working tree makes every step see the same bytes, whatever is edited
    meanwhile, and keeps symbolic links, file names and filters out of the matter.
    """

    def __init__(self, top: str, files: List[Json]) -> None:
        self.top = top
        self.skipped = {"binary": 0, "too_large": 0, "over_budget": 0, "unreadable": 0}
        self.files = self.within_bounds(files)

    def within_bounds(self, files: List[Json]) -> List[Json]:
        """The files that are small enough, up to the budget of the step."""
        chosen, budget = [], MAX_READ_BYTES
        for file in files:
            if file["size"] > MAX_FILE_BYTES:
                self.skipped["too_large"] += 1
            elif file["size"] > budget:
                self.skipped["over_budget"] += 1
            else:
                budget -= file["size"]
                chosen.append(file)
        return chosen

    def __iter__(self) -> Iterator[Tuple[Json, bytes]]:
        if not self.files:
            return
        with tempfile.TemporaryFile() as wanted:
            wanted.write("".join(file["oid"] + "\n" for file in self.files).encode("ascii"))
            wanted.seek(0)
            process = subprocess.Popen(
                [b"git", b"-C", raw(self.top), b"cat-file", b"--batch", b"--buffer"],
                env=git_environment(),
                stdin=wanted,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        try:
            assert process.stdout is not None
            yield from self.read(process.stdout)
        finally:
            process.kill()
            process.communicate()

    def read(self, objects: IO[bytes]) -> Iterator[Tuple[Json, bytes]]:
        """Pair each wanted file with the next object that Git prints."""
        told = time.monotonic()
        for number, file in enumerate(self.files):
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                progress(100.0 * number / len(self.files), f"{number} of {len(self.files)} files")
            header = objects.readline().split()
            if not header:
                raise StepError("git cat-file ended early: is the repository damaged? Try git fsck")
            if len(header) != 3:
                self.skipped["unreadable"] += 1
                continue
            data = objects.read(int(header[2]) + 1)[:-1]
            if b"\0" in data[:BINARY_PROBE_BYTES]:
                self.skipped["binary"] += 1
            else:
                yield file, data


# Text


def text(data: bytes) -> str:
    """Bytes as a string that `raw` turns back into the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def raw(string: str) -> bytes:
    """The bytes that `text` was given."""
    return string.encode("utf-8", "surrogateescape")


# Controls, format characters (which include the bidirectional overrides), surrogates, and line and
# paragraph separators: all that could move the cursor, hide text or reorder it.
UNSHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def show(string: str, limit: int = 0) -> str:
    """The string with everything invisible or undecodable written as an escape, cut to `limit` if not 0."""
    if limit and len(string) > limit:
        string = string[: limit - 1] + "…"
    if string.isascii() and string.isprintable():
        return string
    return "".join(escape(c) if unicodedata.category(c) in UNSHOWN else c for c in string)


def escape(character: str) -> str:
    """One character as an escape sequence; an undecodable byte as that byte."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
