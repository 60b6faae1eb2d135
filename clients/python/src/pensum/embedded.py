"""A server of this process's own: found, started, watched, stopped."""

from __future__ import annotations

import atexit
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import IO

from .errors import StartFailed, invalid

DEFAULT_DB = "sqlite:pensum.db"
DEFAULT_STOP = 15.0
# How long a start may take, in seconds; one that has to mend or migrate its store takes a while.
_START = 60.0
# Between the end of what the server gives running tasks and the kill, for it to write what it knows.
_MARGIN = 5.0
_KEPT_LINES = 200
_READY = "listening on "

# Ends the server when this process has gone without stopping it, however that came: the shell reads a pipe of which
# only this process holds the other end.
_WATCHDOG = """
read -r _
kill -TERM "$1" 2>/dev/null || exit 0
left="$2"
while [ "$left" -gt 0 ]; do sleep 1; kill -0 "$1" 2>/dev/null || exit 0; left=$((left - 1)); done
kill -KILL "$1" 2>/dev/null
"""


class EmbeddedServer:
    """A `pensum serve` that belongs to this process and ends with it."""

    def __init__(
        self,
        db: str | os.PathLike[str] = DEFAULT_DB,
        *,
        binary: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        stop_timeout: float = DEFAULT_STOP,
    ) -> None:
        if isinstance(args, str):
            raise invalid("args", "must be a list of arguments, not one text")
        self.url = ""
        self._db = _store(db)
        self._binary = binary
        self._args = [str(argument) for argument in args]
        self._stop_timeout = stop_timeout
        self._process: subprocess.Popen[str] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._stderr: deque[str] = deque(maxlen=_KEPT_LINES)
        self._readers: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The id of the server's process, None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def stderr(self) -> str:
        """The last lines that the server wrote to its standard error."""
        return "".join(self._stderr)

    def start(self) -> None:
        """Starts the server and returns once it listens."""
        program = find_binary(self._binary)
        command = [program, "serve", "--db", self._db, "--listen", "127.0.0.1:0"]
        if not any(argument.split("=")[0] == "--grace" for argument in self._args):
            command += ["--grace", str(int(max(self._stop_timeout - _MARGIN, 0)))]
        # PENSUM_URL and PENSUM_TOKEN are this client's settings, of another server.
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PENSUM_URL", "PENSUM_TOKEN")
        }
        try:
            # A session of its own: Ctrl-C is for the program that embeds it, which then stops it in order.
            process = subprocess.Popen(
                [*command, *self._args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(
                f"cannot run {program}: {error}; give another program as `binary` or in PENSUM_BIN"
            ) from None
        self._process = process
        try:
            atexit.register(self.stop)
            self._watch(process)
            self.url = self._await_address(process)
        except BaseException:
            self.stop()
            raise

    def _watch(self, process: subprocess.Popen[str]) -> None:
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "pensum-watchdog", str(process.pid), str(int(self._stop_timeout) + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_address(self, process: subprocess.Popen[str]) -> str:
        lines: queue.Queue[str | None] = queue.Queue()
        assert process.stdout is not None and process.stderr is not None
        self._readers = [
            threading.Thread(target=_hand_on, args=(process.stdout, lines), daemon=True),
            threading.Thread(target=_keep, args=(process.stderr, self._stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        deadline = time.monotonic() + _START
        while True:
            try:
                line = lines.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise self._failed(f"did not listen within {_START:g} s") from None
            if line is None:
                self._readers[1].join(timeout=5)
                status = process.wait(timeout=5)
                raise self._failed(f"ended with exit code {status} before it listened")
            if line.startswith(_READY):
                return line[len(_READY) :].strip()

    def _failed(self, what: str) -> StartFailed:
        said = self.stderr.strip()
        return StartFailed(f"`pensum serve --db {self._db}` {what}; it said: {said or 'nothing'}", said)

    def stop(self) -> None:
        """Stops the server in order, by force after the time for that, and returns once it has gone."""
        with self._lock:
            # A forked child has a copy of this object, and the server is not its own.
            if os.getpid() != self._owner:
                return
            atexit.unregister(self.stop)
            process, self._process = self._process, None
            watchdog, self._watchdog = self._watchdog, None
            try:
                if process is not None and process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(timeout=self._stop_timeout)
                    except subprocess.TimeoutExpired:
                        pass
            finally:
                # The watchdog goes before the process is forgotten: its id may be another's afterwards.
                if watchdog is not None:
                    watchdog.kill()
                    watchdog.wait()
                    if watchdog.stdin is not None:
                        watchdog.stdin.close()
                if process is not None:
                    process.kill()
                    process.wait()
            for reader in self._readers:
                reader.join(timeout=5)
            if process is not None:
                for stream in (process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()


def find_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """The program `pensum`: as given, else of PENSUM_BIN, else in PATH."""
    asked = os.fspath(binary) if binary is not None else os.environ.get("PENSUM_BIN") or "pensum"
    found = shutil.which(asked)
    if found is None:
        raise StartFailed(
            f"there is no program `{asked}`; install pensum, or name the program as `binary` or in PENSUM_BIN"
        )
    return found


def _store(db: str | os.PathLike[str]) -> str:
    if not isinstance(db, (str, os.PathLike)) or not os.fspath(db):
        raise invalid("db", f"must be the URL of a store or a file, not {db!r}")
    text = os.fspath(db)
    is_url = isinstance(db, str) and text.startswith(("sqlite:", "postgres:", "postgresql:"))
    return text if is_url else f"sqlite:{text}"


def _hand_on(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    heard = False
    for line in stream:
        # What comes after the address is of no use to anyone.
        if not heard:
            lines.put(line)
            heard = line.startswith(_READY)
    lines.put(None)


def _keep(stream: IO[str], lines: deque[str]) -> None:
    for line in stream:
        lines.append(line)
