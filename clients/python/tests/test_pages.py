"""What the documentation and the examples show is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pensum
import pytest
from harness import Server

HERE = Path(__file__).resolve().parents[1]
PAGE = HERE.parents[1] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A block that is a file, the command that runs it, and a block that needs both.
FILE = re.compile(r"^```python module=(\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```sh\npensum-agent (run \w+ .*?)\n```", re.MULTILINE)
WITH_FILE = re.compile(r"^```python with=(\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(server: Server, directory: Path, code: str) -> str:
    environment = {**os.environ, "PENSUM_URL": server.url, "PENSUM_BIN": pensum.find_binary()}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def blocks() -> list[str]:
    return BLOCK.findall(PAGE.read_text()) if PAGE.exists() else []


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not part of the package")
def test_the_page_has_blocks_to_run() -> None:
    assert len(blocks()) >= 5


@pytest.mark.parametrize("index", range(len(blocks())))
def test_each_block_of_the_page_runs_and_prints_what_it_says(server: Server, tmp_path: Path, index: int) -> None:
    check(server, tmp_path, blocks()[index])


def check(server: Server, directory: Path, block: str) -> None:
    printed = run(server, directory, block).splitlines()
    # A comment `# prints …` behind a line is what it prints.
    promised = re.findall(r"# prints (.*)$", block, re.MULTILINE)
    assert printed == promised


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not part of the package")
def test_the_agent_of_the_page_runs_its_tasks(server: Server, tmp_path: Path) -> None:
    text = PAGE.read_text()
    ((name, module),), ((needed, block),) = FILE.findall(text), WITH_FILE.findall(text)
    (command,) = COMMAND.findall(text)
    assert name == needed
    (tmp_path / name).write_text(module)
    program = Path(sys.executable).parent / "pensum-agent"
    environment = {**os.environ, "PENSUM_URL": server.url}
    with subprocess.Popen([program, *command.split()], cwd=tmp_path, env=environment) as agent:
        try:
            check(server, tmp_path, block)
        finally:
            agent.terminate()
        assert agent.wait(60) == 0


@pytest.mark.parametrize("name", sorted(path.name for path in (HERE / "examples").glob("*.py")))
def test_each_example_runs(server: Server, tmp_path: Path, name: str) -> None:
    assert run(server, tmp_path, (HERE / "examples" / name).read_text())


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not part of the package")
def test_the_page_names_every_method_and_exception() -> None:
    text = PAGE.read_text()
    client = pensum.Client("http://127.0.0.1:1")
    parts = ["tasks", "bulk", "executions", "agents", "breakers", "queues", "dead_letters", "intake", "nodes",
             "system"]  # fmt: skip
    for part in parts:
        for method in dir(getattr(client, part)):
            if not method.startswith("_"):
                assert f"`{part}.{method}(" in text, f"{part}.{method}"
    for name in pensum.__all__:
        kind = getattr(pensum, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert f"`{name}`" in text, name
    short = ["create_task", "get_task", "list_tasks", "cancel_task", "execute_task", "process_queue",
             "update_task", "retry_task", "delete_task", "get_task_execution", "get_queue_statistics",
             "get_system_metrics", "get_performance_report", "health_check", "get_task_status", "get_system_status",
             "add_queue", "register_agent", "agent", "remove_agent",
             "drain_agent", "undrain_agent", "leave_agent", "poll_agent", "heartbeat_agent",
             "complete_executions"]  # fmt: skip
    for name in short:
        assert f"`{name}" in text and callable(getattr(client, name)), name
