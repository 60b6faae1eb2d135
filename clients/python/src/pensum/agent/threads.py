"""Threads for synchronous task functions.

Unlike those of `concurrent.futures`, they hold up neither the end of the process nor one another: one that is stuck is
left alone, and another takes the next call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

_IDLE = 60.0
"""After so many seconds without work a thread ends."""


class Threads:
    """As many threads as calls run at once; whoever calls bounds that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._started = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Runs a call, which must not raise, in a thread."""
        with self._lock:
            # Each call that waits in the queue has an idle thread of its own to take it.
            is_taken = self._idle > 0
            self._idle -= is_taken
            self._started += not is_taken
        self._calls.put(call)
        if not is_taken:
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                # A call was counted on this thread meanwhile, and is about to come.
                continue
            call()
            del call
            with self._lock:
                self._idle += 1
