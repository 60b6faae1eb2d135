from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pensum
import pytest
from fake import Fake
from harness import Clients, Proxy, Server

# A line for every request would bury what the tests look for.
logging.getLogger("httpx").setLevel(logging.WARNING)
# Settings of whoever runs the tests are not for them: only which program is tested, PENSUM_BIN, and on which store.
for name in list(os.environ):
    if name.startswith("PENSUM_") and name != "PENSUM_BIN" and not name.startswith("PENSUM_TEST_POSTGRES"):
        del os.environ[name]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it running."""
    running = Server(tmp_path_factory.mktemp("server")).start()
    yield running
    running.stop()
    running.store.drop()


@pytest.fixture
def own_server(tmp_path: Any) -> Iterator[Server]:
    """A server that the test may stop and kill."""
    running = Server(tmp_path).start()
    yield running
    running.kill()
    running.store.drop()


@pytest.fixture(params=["sync", "async"])
def clients(request: pytest.FixtureRequest) -> Iterator[Clients]:
    """Every test runs with the synchronous and with the asynchronous client."""
    made = Clients(request.param)
    yield made
    made.close()


@pytest.fixture
def client(clients: Clients, server: Server) -> Any:
    return clients(server.url)


@pytest.fixture
def name() -> str:
    """A name that no other test has: for queues, tags and keys."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    between = Proxy(server.port)
    yield between
    between.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


@pytest.fixture
def api(server: Server) -> Iterator[pensum.Client]:
    with pensum.Client(server.url) as client:
        yield client
