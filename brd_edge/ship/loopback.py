"""A device on this machine, to try things out: an SSH server on 127.0.0.1 that runs while it is talked to.

Everything is as on a real device (SSH with verified host keys, SFTP, the device's own process),
but the commands run here, in this Python. Server and client keys exist only in memory.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncssh

__all__ = ["loopback_device", "run_command"]

_CLOSING_S = 5


async def run_command(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run the command that a client asked for, with the client as its standard input and output."""
    command = process.command or "true"
    # in a session of its own, so that everything it started ends when the client goes away
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **process.env},
    )
    try:
        await process.redirect(child.stdin, child.stdout, child.stderr)
        process.exit(await child.wait())
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            await child.wait()
        # what was still on its way must be given up in an orderly manner
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait_closed(), _CLOSING_S)


@asynccontextmanager
async def loopback_device() -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Start the server, connect to it, and stop it when the connection is done with."""
    import asyncssh

    host_key, client_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(client_key.export_public_key().decode()),
        process_factory=run_command,
        sftp_factory=True,
        encoding=None,
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        known = asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
        async with asyncssh.connect(
            "127.0.0.1", port, username="device", client_keys=[client_key], known_hosts=known, config=None
        ) as connection:
            yield connection
