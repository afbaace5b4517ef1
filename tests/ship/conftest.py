from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ship.harness import SSHD, Server, asyncssh_server, openssh_server

logging.getLogger("asyncssh").setLevel(logging.CRITICAL)


@pytest.fixture(scope="session", params=["openssh", "asyncssh"])
def any_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each of the two servers."""
    if request.param == "openssh" and SSHD is None:
        pytest.skip("OpenSSH's sshd is not installed")
    with tempfile.TemporaryDirectory(prefix="sshd-") as directory:
        start = openssh_server if request.param == "openssh" else asyncssh_server
        with start(Path(directory)) as server:
            yield server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """OpenSSH's sshd where it is installed, else the server of asyncssh."""
    with tempfile.TemporaryDirectory(prefix="sshd-") as directory:
        start = openssh_server if SSHD is not None else asyncssh_server
        with start(Path(directory)) as running:
            yield running
