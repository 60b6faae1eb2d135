"""What a run has to say before its end, log lines, progress, checkpoints: kept until the server has it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections import deque
from collections.abc import Callable, Generator
from datetime import datetime, timezone
from typing import Any, NamedTuple

from .outcomes import readable

# The server cuts lines at 8 KiB.
_LINE_MAX = 10_000
# How much of a log goes with one heartbeat.
_BEAT_BYTES = 512 * 1024


class Saved:
    """A checkpoint on its way to the server."""

    def __init__(self) -> None:
        self.future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def __await__(self) -> Generator[Any, None, None]:
        if self.future.done():
            return self.future.result()
        return (yield from asyncio.wrap_future(self.future).__await__())

    def settle(self, error: Exception | None = None) -> None:
        """Says that the server has it, or why not."""
        if not self.future.done():
            self.future.set_exception(error) if error else self.future.set_result(None)


class _Carried(NamedTuple):
    """What the heartbeat under way carries."""

    lines: int
    progress: dict[str, Any] | None
    checkpoint: bytes | None
    saves: list[Saved]


class Outbox:
    """What one run says. `log` and the setting of `progress` may come from any thread, the rest from the event loop."""

    def __init__(self, beat_soon: Callable[[], None]) -> None:
        self.progress: dict[str, Any] | None = None
        self._beat_soon = beat_soon
        self._lines: deque[bytes] = deque()
        self._checkpoint: bytes | None = None
        self._saves: list[Saved] = []
        self._carried: _Carried | None = None

    def log(self, message: str, stream: str) -> None:
        """A line for the task's log."""
        line = {
            "message": readable(message[:_LINE_MAX]),
            "stream": stream,
            "at": datetime.now(timezone.utc).isoformat(),
        }
        self._lines.append(json.dumps(line).encode())

    def save(self, checkpoint: bytes, saved: Saved) -> None:
        """Sends a checkpoint at once; of several that wait the last counts."""
        self._checkpoint = checkpoint
        self._saves.append(saved)
        self._beat_soon()

    @property
    def is_under_way(self) -> bool:
        """Whether a heartbeat carries something."""
        return self._carried is not None

    def rest(self, most: int) -> bytes | None:
        """What a result carries, as further fields of it; None where the log has more bytes than `most`."""
        lines = list(self._lines)
        if sum(map(len, lines)) > most:
            return None
        return self._fields(lines)

    def _fields(self, lines: list[bytes]) -> bytes:
        fields = b""
        if lines:
            fields += b',"logs":[' + b",".join(lines) + b"]"
        if self.progress is not None:
            fields += b',"progress":' + json.dumps(self.progress).encode()
        return fields

    def carry(self) -> bytes:
        """What the next heartbeat carries, as further fields of it."""
        lines: list[bytes] = []
        size = 0
        for line in list(self._lines):
            size += len(line)
            if lines and size > _BEAT_BYTES:
                break
            lines.append(line)
        progress, fields = self.progress, self._fields(lines)
        if self._checkpoint is not None:
            fields += b',"checkpoint":' + self._checkpoint
        if fields:
            self._carried = _Carried(len(lines), progress, self._checkpoint, self._saves)
            self._checkpoint, self._saves = None, []
        return fields

    def arrived(self, error: Exception | None = None) -> None:
        """The server has what the heartbeat carried, or refuses it."""
        if self._carried is None:
            return
        carried, self._carried = self._carried, None
        for _ in range(carried.lines):
            self._lines.popleft()
        if self.progress is carried.progress:
            self.progress = None
        for saved in carried.saves:
            saved.settle(error)

    def got_lost(self) -> None:
        """The heartbeat did not arrive: what it carried goes with the next."""
        if self._carried is None:
            return
        carried, self._carried = self._carried, None
        self._saves = carried.saves + self._saves
        self._checkpoint = carried.checkpoint if self._checkpoint is None else self._checkpoint
        if self._saves:
            self._beat_soon()

    def refuse(self, error: Exception) -> None:
        """No checkpoint will arrive any more."""
        saves, self._saves = self._saves, []
        if self._carried is not None:
            saves += self._carried.saves
        for saved in saves:
            saved.settle(error)
