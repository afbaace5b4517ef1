"""The position of a training loader as bytes, for checkpoints."""

from __future__ import annotations

import json

from brd_edge.data.plan import Plan
from brd_edge.runtime.errors import DataError

__all__ = ["decode_state", "encode_state"]

_STATE_VERSION = 1


def encode_state(plan: Plan, batches: int) -> bytes:
    """Return the state of a loader that has given out `batches` batches."""
    state = {"version": _STATE_VERSION, "batches": batches, "fingerprint": plan.fingerprint()}
    return json.dumps(state, sort_keys=True).encode()


def decode_state(plan: Plan, state: bytes) -> int:
    """Return the number of batches given out, from `encode_state`'s bytes.

    Raises:
        DataError: The state is damaged, or belongs to a loader with another plan.
    """
    try:
        values = json.loads(state)
        version, batches, theirs = values["version"], values["batches"], dict(values["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"loader: the saved state cannot be read ({error}): start training anew") from error
    if version != _STATE_VERSION or not isinstance(batches, int) or batches < 0:
        raise DataError(
            f"loader: expected a saved state of version {_STATE_VERSION} with a batch count from 0, got version "
            f"{version!r} with {batches!r}: start training anew"
        )
    mine = plan.fingerprint()
    found = [
        f"{name}: {mine.get(name)!r} against {theirs.get(name)!r}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if found:
        raise DataError(
            f"loader: the saved state is of a loader with other settings ({'; '.join(found)}): "
            "resume with the settings it was saved with, or start training anew"
        )
    return batches
