"""Gradients that are written out: they hold once, and say so when somebody asks for more."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["first_derivative_only"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def first_derivative_only(what: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator of a `backward` that refuses to be part of a second derivative.

    Autograd would take a gradient that is written out for a constant, and give a second derivative without it. torch's
    `once_differentiable` says nothing where the incoming gradient needs none itself, as that of a loss, nor ever to
    `torch.autograd.grad`, which follows only what leads to its inputs. Whether a second derivative is wanted is known
    from the grad mode: backward runs with gradients enabled if and only if `create_graph` is set.

    Args:
        what: Who cannot be differentiated twice, for the message.
    """

    def decorate(backward: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(backward)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"{what} can be differentiated once only: its gradient is written out, and a second derivative "
                    "would silently lack it. Call backward() or torch.autograd.grad() without create_graph=True, or "
                    "leave this term out of what is differentiated twice"
                )
            return backward(*args, **kwargs)

        return checked

    return decorate
