"""A server of the client's own: started, stopped, missing, broken, and never left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pensum
import pytest
from harness import Clients


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, most: float) -> bool:
    deadline = time.monotonic() + most
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def children() -> set[str]:
    return {
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    }


def test_it_starts_works_and_stops_in_order(clients: Clients, tmp_path: Path) -> None:
    before = children()
    client = clients.embedded(tmp_path / "own.db", args=["--slots", "3"])
    assert client.system.status().nodes[0].slots == 3
    task = client.tasks.create("noop")
    assert client.tasks.wait(task, 30).completed
    pid = client.server.pid
    assert alive(pid)
    # Ctrl-C in the terminal is for the program, which stops the server in order.
    assert os.getsid(pid) != os.getsid(0)
    client.close()
    assert not alive(pid) and client.server.pid is None and children() == before
    client.close()
    again = clients.embedded(f"sqlite:{tmp_path}/own.db")
    assert again.tasks.get(task).completed
    # A node that ended in order is in the list of nodes no more.
    assert len(list(again.nodes.list())) == 1


def test_blocks_stop_it_also_when_they_raise(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), pensum.Client.embedded(tmp_path / "x.db") as client:
        assert client.server is not None
        server = client.server
        pid = server.pid
        raise RuntimeError
    assert pid is not None and not alive(pid) and server.pid is None


def test_the_settings_of_the_environment_are_for_other_servers(
    clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSUM_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("PENSUM_TOKEN", "secret")
    assert clients.embedded(tmp_path / "x.db").system.health().status == "ok"


def test_a_missing_program_is_named(clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pensum.StartFailed, match="/nowhere/pensum.*PENSUM_BIN"):
        clients.embedded(tmp_path / "x.db", binary="/nowhere/pensum")
    monkeypatch.setenv("PENSUM_BIN", "no-such-program")
    with pytest.raises(pensum.StartFailed, match="no-such-program"):
        clients.embedded(tmp_path / "x.db")
    monkeypatch.delenv("PENSUM_BIN")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pensum.StartFailed, match="`pensum`"):
        clients.embedded(tmp_path / "x.db")
    for wrong in ["", None, 5]:
        with pytest.raises(pensum.Invalid):
            clients.embedded(wrong)
    with pytest.raises(pensum.Invalid):
        clients.embedded(tmp_path / "x.db", args="--slots 3")


def test_the_program_is_found_in_path(clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pensum").symlink_to(Path(pensum.find_binary()).resolve())
    monkeypatch.delenv("PENSUM_BIN", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert clients.embedded(tmp_path / "x.db").system.health().status == "ok"


def test_a_start_that_fails_says_what_the_program_said(clients: Clients, tmp_path: Path) -> None:
    before = children()
    (tmp_path / "broken.db").write_bytes(b"this is no store at all" * 1000)
    with pytest.raises(pensum.StartFailed, match="exit code") as caught:
        clients.embedded(tmp_path / "broken.db")
    assert "broken.db" in caught.value.stderr and caught.value.stderr in str(caught.value)
    with pytest.raises(pensum.StartFailed, match="--surprise"):
        clients.embedded(tmp_path / "x.db", args=["--surprise"])
    clients.embedded(tmp_path / "x.db")
    with pytest.raises(pensum.StartFailed, match="exit code"):
        clients.embedded(tmp_path / "x.db")
    not_a_program = tmp_path / "script"
    not_a_program.write_text("no program\n")
    not_a_program.chmod(not_a_program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(pensum.StartFailed, match="cannot run"):
        clients.embedded(tmp_path / "y.db", binary=not_a_program)
    assert len(children() - before) == 2  # The one that started, and its watchdog.


def test_a_server_that_does_not_stop_is_killed(clients: Clients, tmp_path: Path) -> None:
    client = clients.embedded(tmp_path / "x.db", stop_timeout=0.3)
    pid = client.server.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    client.close()
    assert not alive(pid) and time.monotonic() - began < 10


def test_a_server_that_was_killed_is_unavailable(clients: Clients, tmp_path: Path) -> None:
    client = clients.embedded(tmp_path / "x.db", retries=1)
    task = client.tasks.create("sleep", {"seconds": 60})
    threading.Timer(0.2, os.kill, [client.server.pid, signal.SIGKILL]).start()
    with pytest.raises(pensum.Unavailable):
        client.tasks.wait(task, outage=0.5)
    assert client.server.pid is None


PROGRAM = """
import os, sys, pensum
client = pensum.Client.embedded(sys.argv[1], stop_timeout=5)
print(client.server.pid, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "1 / 0", "os._exit(0)", "os.kill(os.getpid(), 9)", "input()"])
def test_no_end_of_the_program_leaves_it_behind(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end=end), str(tmp_path / "x.db")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        if end == "input()":
            # As Ctrl-C does it: the whole group of the terminal. One that comes just before the program begins to read
            # is noticed only once it has read; nobody at a keyboard is that fast.
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    assert gone_within(pid, 10)


# Newer Pythons warn of forks beside threads; leaving the server alone in the child is all that this one does.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_leaves_the_server_alone(tmp_path: Path) -> None:
    with pensum.Client.embedded(tmp_path / "x.db") as client:
        child = os.fork()
        if child == 0:
            client.server.stop() if client.server else None
            os._exit(0)
        os.waitpid(child, 0)
        assert client.system.health().status == "ok"


def test_running_tasks_are_given_back_when_it_stops(clients: Clients, tmp_path: Path) -> None:
    client = clients.embedded(tmp_path / "x.db", stop_timeout=5.5)
    task: Any = client.tasks.create("sleep", {"seconds": 600})
    while client.tasks.get(task).status != "running":
        time.sleep(0.01)
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 5
    again = clients.embedded(tmp_path / "x.db", stop_timeout=5.5)
    found = again.tasks.get(task)
    assert not found.ended and found.retry_count == 0
    again.tasks.cancel(task)
    assert again.tasks.wait(task, 30).status == "cancelled"
