import subprocess
from pathlib import Path

import pytest

from brd_edge.runtime.files import expand_home


@pytest.mark.parametrize("path", ["~", "~/data", "~root/data", "~no-such-user/data", "data/~", "/data"])
def test_home_directories_are_those_of_a_shell(path: str) -> None:
    # no quotes, so that the shell expands it
    shell = subprocess.run(["/bin/sh", "-c", f"printf %s {path}"], capture_output=True, text=True, check=True)

    assert expand_home(path) == Path(shell.stdout)
