"""The command `brd-edge` as a shell sees it."""

from __future__ import annotations

import subprocess
import sys


def test_who_has_read_enough_ends_the_command_without_a_word() -> None:
    many_lines = "import sys; from brd_edge import cli; cli.COMMANDS['x'] = lambda _: print('line\\n' * 200_000) or 0; "
    told = subprocess.Popen(
        [sys.executable, "-c", many_lines + "sys.exit(cli.main(['x']))"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert told.stdout is not None and told.stderr is not None
    assert told.stdout.readline() == b"line\n"
    told.stdout.close()

    assert told.wait(timeout=60) == 141
    assert told.stderr.read() == b""
    told.stderr.close()
