"""The command `brd-edge`: runs, explains and compares recipes, looks at data, signs, ships; runs bundles."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from brd_edge.runtime.errors import InterruptedRunError, tell_error

__all__ = ["main"]


def _keys(arguments: Sequence[str]) -> int:
    from brd_edge.ship.keys import make_keys

    parser = argparse.ArgumentParser(prog="brd-edge keys", description="Make a pair of Ed25519 keys to sign bundles.")
    parser.add_argument("name", type=Path, metavar="NAME", help="makes NAME.key (private) and NAME.pub")
    path = parser.parse_args(arguments).name
    path = path if path.suffix == ".key" else path.with_name(f"{path.name}.key")
    public, key = make_keys(path)
    print(f"{path}: private, signs bundles; keep it to yourself and keep a copy in a safe place")
    print(f"{public}: public, key id {key}; devices trust it")
    return 0


def _sign(arguments: Sequence[str]) -> int:
    from brd_edge.ship.bundle import pack_bundle
    from brd_edge.ship.keys import read_private_key, sign_bundle

    parser = argparse.ArgumentParser(prog="brd-edge sign", description="Sign a bundle and pack it into one archive.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's directory, such as runs/…/bundle")
    parser.add_argument("--key", type=Path, required=True, metavar="NAME.key", help="the private key")
    options = parser.parse_args(arguments)
    signature = sign_bundle(options.bundle, read_private_key(options.key))
    archive = pack_bundle(options.bundle)
    print(f"signed by {signature.key_id}: {options.bundle}")
    print(f"packed, {archive.stat().st_size / 1e6:.1f} MB: {archive}")
    return 0


def _ship(arguments: Sequence[str]) -> int:
    from brd_edge.ship.__main__ import main as ship

    return ship(arguments)


def _runtime(arguments: Sequence[str]) -> int:
    from brd_edge.runtime.__main__ import main as runtime

    return runtime(arguments)


def _data(arguments: Sequence[str]) -> int:
    from brd_edge.looking import look_at_data

    return look_at_data(arguments)


def _explain(arguments: Sequence[str]) -> int:
    from brd_edge.explaining import explain_losses

    return explain_losses(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from brd_edge.comparing import compare

    return compare(arguments)


def _recipe(arguments: Sequence[str]) -> int:
    from brd_edge.pipeline import main as pipeline

    return pipeline(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _recipe,
    "data": _data,
    "explain": _explain,
    "compare": _compare,
    "keys": _keys,
    "sign": _sign,
    "ship": _ship,
    "runtime": _runtime,
}
"""The commands by name; what is none of them is taken for a recipe."""


_USAGE = """\
usage: brd-edge RECIPE …         run a recipe (brd-edge run RECIPE is the same)
       brd-edge data RECIPE      what a recipe's data set holds, what is odd, how it looks in training
       brd-edge explain RUN      where accuracy went between the trained student and each engine
       brd-edge compare A B      what changed from run A to run B, and whether anything is worse
       brd-edge keys NAME        make a pair of keys to sign bundles
       brd-edge sign BUNDLE …    sign a bundle and pack it
       brd-edge ship BUNDLE …    deliver a bundle to devices, see what serves, roll back
       brd-edge runtime …        on a device: verify, build, bench, infer, …
--help after each of them tells more"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `brd-edge RECIPE` is `brd-edge run RECIPE`.

    Args:
        arguments: The command line without the program; the process's own when not given.

    Returns:
        The command's exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given[0] not in COMMANDS and given[0].isalpha() and not Path(given[0]).exists():
        nearest = difflib.get_close_matches(given[0], COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        print(f"brd-edge: error: no command or recipe {given[0]!r}; {hint}\n{_USAGE}", file=sys.stderr)
        return 2
    command = COMMANDS.get(given[0])
    try:
        code = command(given[1:]) if command is not None else _recipe(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read along (`| head`) has seen enough; the interpreter would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, InterruptedRunError, KeyboardInterrupt) as error:
        return tell_error(error, extra="all")
    return code


if __name__ == "__main__":
    sys.exit(main())
