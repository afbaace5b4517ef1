"""The exception tree of the product.

Every error that a user can cause or must act on is a `BrdEdgeError`; the command line prints its
message without a traceback and exits with its `exit_code`.
"""

from __future__ import annotations

import sys

__all__ = [
    "BrdEdgeError",
    "BundleError",
    "ContractError",
    "DataError",
    "DeliveryError",
    "EngineError",
    "GateError",
    "InterruptedRunError",
    "ModelError",
    "RecipeError",
    "RunError",
    "RuntimeMissingError",
    "TrainingError",
    "explain_error",
    "tell_error",
]


class BrdEdgeError(Exception):
    """Base of all errors with a message for people: what was expected, what came, what to do."""

    exit_code = 1


class RecipeError(BrdEdgeError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class RunError(BrdEdgeError):
    """The run directory cannot be used: locked, damaged, or written by another recipe."""


class DataError(BrdEdgeError):
    """A data set is missing, incomplete, or holds files that cannot be used."""


class ModelError(BrdEdgeError):
    """A model cannot be built, loaded, or matched with another one."""


class TrainingError(BrdEdgeError):
    """Training cannot go on, for example because a loss term is not finite."""


class ContractError(BrdEdgeError):
    """Two parts disagree about the input contract (size, normalisation, layout)."""


class EngineError(BrdEdgeError):
    """An engine cannot be built, loaded, or run."""


class RuntimeMissingError(EngineError):
    """The engine's runtime is not installed, or its hardware is not here."""


class BundleError(BrdEdgeError):
    """A bundle is not signed by a trusted key, was altered, or cannot be used here."""


class DeliveryError(BrdEdgeError):
    """A bundle could not be delivered; the device serves what it served before."""


class GateError(BrdEdgeError):
    """An engine, or the zero-cost proof, did not hold its gate."""

    exit_code = 3


class InterruptedRunError(BaseException):
    """The user or the system asked the run to stop; what was done so far is saved.

    Not an `Exception`, as `KeyboardInterrupt` is none: code that turns a library's failures into
    its own must not take a request to stop for one of them.
    """

    exit_code = 130


def explain_error(error: BaseException, *, extra: str) -> tuple[int, str] | None:
    """Return the exit code and the words in which a command ends, or None where only a traceback tells more.

    Args:
        error: What ended the command.
        extra: The extra of `brd-edge` that brings the packages which the command needs.

    Example:
        >>> explain_error(RunError("runs/a: in use"), extra="train")
        (1, 'error: runs/a: in use')
    """
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError.exit_code, "interrupted"
    if isinstance(error, InterruptedRunError):
        return error.exit_code, str(error) or "interrupted"
    if isinstance(error, BrdEdgeError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "brd_edge").startswith("brd_edge"):
        return 1, f'error: the package {error.name} is not installed; pip install "brd-edge[{extra}]" brings it'
    if isinstance(error, OSError):
        return 1, f"error: {error.filename or 'the system says'}: {error.strerror or error}"
    return None


def tell_error(error: BaseException, *, extra: str) -> int:
    """Write on stderr in which words a command ends, as `explain_error`, and return the exit code.

    Raises:
        BaseException: The error itself, where only a traceback tells more.
    """
    told = explain_error(error, extra=extra)
    if told is None:
        raise error
    code, text = told
    print(f"brd-edge: {text}", file=sys.stderr)
    return code
