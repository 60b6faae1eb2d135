"""What the two clients do differently beyond `async` and `await`."""

from asyncio import sleep, to_thread

__all__ = ["sleep", "to_thread"]
