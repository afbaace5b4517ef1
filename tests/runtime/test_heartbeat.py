from __future__ import annotations

import re
import time

import pytest

from brd_edge.runtime.heartbeat import heartbeat


def test_long_work_is_heard_of() -> None:
    said: list[str] = []
    with heartbeat("building", said.append, every_s=0.05):
        time.sleep(0.3)
    assert said[0] == "building"
    assert len(said) >= 4
    assert all(re.fullmatch(r"building, \d+ s so far", line) for line in said[1:-1])
    assert re.fullmatch(r"building: done in \d+ s", said[-1])


def test_work_that_fails_is_not_done() -> None:
    said: list[str] = []
    with pytest.raises(KeyError), heartbeat("building", said.append):
        raise KeyError
    assert said == ["building"]
