"""`pensum-agent`: an agent from the command line."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import platform
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import Conflict, Forbidden, Invalid, NotFound, PensumError, Unavailable
from .agent import Agent, functions_of

# As those of `pensum`.
_USAGE = 2
_EXIT_CODES: list[tuple[type[PensumError], int]] = [
    (Invalid, _USAGE),
    (NotFound, 3),
    (Forbidden, 4),
    (Unavailable, 5),
    (Conflict, 6),
]
_RESOURCES = ("cpu_cores", "memory_gb", "disk_gb", "gpu_memory_gb")


class Usage(Exception):
    """What was asked for cannot be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; answers its exit code."""
    options = _parser().parse_args(arguments)
    line = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=line, datefmt="%Y-%m-%dT%H:%M:%S")
    # Its own lines say what matters; those of every request would drown them.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        agent = _agent(options)
        registration = agent.registration()
        logging.info("agent %s: %s", agent.id, ", ".join(registration["capabilities"]))
        agent.run()
    except (Usage, TypeError) as error:
        return _failed(error, _USAGE)
    except PensumError as error:
        return _failed(error, next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1))
    return 0


def _failed(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pensum-agent", description="Runs tasks of a Pensum server in Python.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run an agent until SIGTERM or SIGINT",
        description="Runs an agent until SIGTERM or SIGINT. Exit codes: 0 stopped in order, 2 usage, 4 not allowed, "
        "5 server unreachable at the beginning, 6 another process took over.",
    )
    run.add_argument(
        "target", metavar="MODULE[:NAME]", help="an Agent, or a module whose functions with @task are meant"
    )
    run.add_argument("--url", help="the server (default: PENSUM_URL, else http://127.0.0.1:7400)")
    run.add_argument("--token", help="its token (default: PENSUM_TOKEN)")
    run.add_argument("--id", help="the agent's id (default: PENSUM_AGENT_ID, else that of the "
                     "Agent, else MODULE-HOST)")  # fmt: skip
    run.add_argument("--max", type=int, metavar="N", help="how many tasks run at once")
    run.add_argument("--capability", action="append", metavar="NAME", help="what it can do; may be repeated (default: "
                     "the names of its functions)")  # fmt: skip
    run.add_argument("--label", action="append", metavar="NAME=VALUE", type=_pair(str), help="may be repeated")
    run.add_argument("--resource", action="append", metavar="NAME=AMOUNT", type=_pair(float),
                     help=f"one of {', '.join(_RESOURCES)}; may be repeated")  # fmt: skip
    run.add_argument("--lease", type=float, metavar="SECONDS", help="a task whose agent dies is given to another then")
    run.add_argument("--grace", type=float, metavar="SECONDS", help="the time for running tasks at SIGTERM")
    run.add_argument("--exit-on-drain", action="store_true", default=None, help="end once it is drained")
    return parser


def _pair(convert: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    def parse(text: str) -> tuple[str, Any]:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
        try:
            return name, convert(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is no number") from None

    return parse


def _agent(options: argparse.Namespace) -> Agent:
    found = _load(options.target)
    if isinstance(found, types.ModuleType):
        if not functions_of(found):
            raise Usage(f"{found.__name__} has no functions with @task")
        found = Agent(re.sub(r"[^A-Za-z0-9_.:/-]", "-", f"{found.__name__}-{platform.node()}"), [found])
    given = {
        "url": options.url, "token": options.token, "max_concurrent": options.max,
        "id": options.id or os.environ.get("PENSUM_AGENT_ID") or None,
        "capabilities": options.capability, "labels": options.label and dict(options.label),
        "resources": options.resource and dict(options.resource), "lease": options.lease, "grace": options.grace,
        "exit_on_drain": options.exit_on_drain,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            if name == "max_concurrent" and value < 1:
                raise Usage("--max must be one or more")
            setattr(found, name, value)
    return found


def _load(target: str) -> Agent | types.ModuleType:
    module_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise Usage(f"there is no module `{module_name}` here or where Python looks for modules") from None
    found: Any = module
    for part in name.split(".") if name else ():
        if not hasattr(found, part):
            raise Usage(f"{target}: there is no `{part}` in `{module_name}`")
        found = getattr(found, part)
    if not isinstance(found, (Agent, types.ModuleType)):
        raise Usage(f"{target} is no Agent and no module; it is {found!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
