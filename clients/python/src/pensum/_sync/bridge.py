"""What the two clients do differently beyond `async` and `await`."""

from time import sleep

__all__ = ["sleep"]
