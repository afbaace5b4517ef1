"""Devices for tests: a real SSH server, a device root in a temporary directory, and faults."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from brd_edge.ship.loopback import run_command
from brd_edge.ship.transport import Device

SSHD = shutil.which("sshd") or next((path for path in ("/usr/sbin/sshd",) if Path(path).exists()), None)
if os.environ.get("TEST_SSH_SERVER") == "asyncssh":
    SSHD = None

# Runs in the device's Python before brd-edge does: at a given one of the moments at which files below the
# device root change, the process is killed or the disk is full, or it waits for long. Python's own audit hooks tell of
# them.
SITE = """
import os, signal, sys, time
kind, at, root, log = (os.environ.get(name, "") for name in ("FAULT", "FAULT_AT", "FAULT_ROOT", "FAULT_LOG"))
count = 0
EVENTS = ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def hook(event, arguments):
    global count
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & WRITES:
            return
    elif event not in EVENTS:
        return
    if not any(str(argument).startswith(root) for argument in arguments) or str(arguments[0]).endswith(".lock"):
        return
    count += 1
    if kind == "count":
        with open(log, "a") as file:
            file.write(f"{event} {arguments}\\n")
    elif count == int(at) and kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif count == int(at) and kind == "wait":
        time.sleep(20)
    elif count >= int(at) and kind == "full" and event in ("open", "os.mkdir", "os.link", "os.symlink"):
        raise OSError(28, "No space left on device", arguments[0])
if kind and "receive" in sys.argv:
    sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Server:
    """A running SSH server."""

    port: int
    identity: Path
    known_hosts: Path
    kind: str

    def device(self, root: Path, **settings: object) -> Device:
        """Return a device of this server."""
        defaults = {"python": sys.executable, "identity": self.identity, "known_hosts": self.known_hosts}
        address = f"{getpass.getuser()}@127.0.0.1:{self.port}"
        return Device(address, "127.0.0.1", getpass.getuser(), self.port, root=str(root), **{**defaults, **settings})

    def through(self, device: Device, port: int) -> Device:
        """Return the same device behind a proxy."""
        values = {**vars(device), "port": port, "known_hosts": self.known_hosts.with_name(f"known-{port}")}
        line = self.known_hosts.read_text().replace(f":{self.port} ", f":{port} ")
        values["known_hosts"].write_text(line)
        return Device(**values)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _keys(directory: Path) -> tuple[Path, Path]:
    for name in ("host", "client"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(directory / name)
        key.write_public_key(directory / f"{name}.pub")
        (directory / name).chmod(0o600)
    return directory / "host", directory / "client"


@contextmanager
def openssh_server(directory: Path) -> Iterator[Server]:
    """OpenSSH's own sshd, for this user, on a free port."""
    assert SSHD is not None
    host, client = _keys(directory)
    port = _free_port()
    authorized = directory / "authorized"
    shutil.copyfile(f"{client}.pub", authorized)
    directory.chmod(0o700)
    settings = {
        "HostKey": host,
        "AuthorizedKeysFile": authorized,
        "PidFile": directory / "pid",
        "ListenAddress": "127.0.0.1",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "MaxStartups": "100",
        "Subsystem": "sftp internal-sftp",
    }
    config = directory / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    # where sshd keeps privileges apart; systemd would make it
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config), "-p", str(port)], stderr=log)
    try:
        _wait_for(port)
        yield _server(directory, port, "openssh")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def asyncssh_server(directory: Path) -> Iterator[Server]:
    """asyncssh's server, in a thread of this process."""
    import threading

    host, client = _keys(directory)
    ready, port = threading.Event(), 0
    loop = asyncio.new_event_loop()

    async def serve() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[str(host)],
            authorized_client_keys=f"{client}.pub",
            process_factory=run_command,
            sftp_factory=True,
            encoding=None,
        )

    def work() -> None:
        nonlocal port
        asyncio.set_event_loop(loop)
        acceptor = loop.run_until_complete(serve())
        port = acceptor.sockets[0].getsockname()[1]
        ready.set()
        loop.run_forever()
        acceptor.close()
        loop.run_until_complete(acceptor.wait_closed())
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(20)
        yield _server(directory, port, "asyncssh")
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _server(directory: Path, port: int, kind: str) -> Server:
    known = directory / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(directory / 'host.pub').read_text()}")
    return Server(port, directory / "client", known, kind)


def _wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("sshd did not start")


def faulty_python(directory: Path, **fault: object) -> Path:
    """Return a Python for the device whose environment carries a fault."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(SITE)
    script = directory / "python"
    exports = "".join(f"export {key}='{value}'\n" for key, value in fault.items())
    script.write_text(f"#!/bin/sh\n{exports}export PYTHONPATH='{directory}'\nexec '{sys.executable}' \"$@\"\n")
    script.chmod(0o755)
    return script


class Proxy:
    """A TCP proxy that can be cut: after so many bytes from the client, or at once."""

    def __init__(self, target: int, cut_after_bytes: int | None = None) -> None:
        self.target, self.left = target, cut_after_bytes
        self.sent = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool) -> None:
        try:
            while chunk := await reader.read(4096):
                if counted:
                    self.sent += len(chunk)
                    if self.left is not None and self.sent > self.left:
                        self.cut()
                        return
                writer.write(chunk)
                await writer.drain()
            writer.close()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [writer, to_writer]
        self._tasks += [
            asyncio.ensure_future(self._pipe(reader, to_writer, True)),
            asyncio.ensure_future(self._pipe(to_reader, writer, False)),
        ]


@asynccontextmanager
async def proxied(target: int, cut_after_bytes: int | None = None) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a server."""
    proxy = Proxy(target, cut_after_bytes)
    server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)
