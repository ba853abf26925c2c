"""Errors that interrupt the package, as opposed to errors of the data that it reads.

Reading a user's data may raise any error, which becomes a `ValidationError`. An error that a signal handler raises, as
soft time limits of workers do, or that another thread raises in this one, must reach the caller as it is.
"""

from __future__ import annotations

from types import FrameType
from typing import Final

_PACKAGE: Final = __name__.partition(".")[0]
# Errors of code written in C, which has no frame in a traceback, about unsuitable values.
_DATA_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


def raise_interruption(error: BaseException) -> None:
    """Raise an error again if it interrupted the package. Return if the user's data may have raised it."""
    if is_interruption(error):
        raise error


def is_interruption(error: BaseException) -> bool:
    """Return whether an error was raised by a signal handler, or in this thread by another one.

    Python calls a signal handler with the interrupted frame. If the traceback ends in the package, the error comes from
    the package, from code in C, or from another thread. The first two raise only certain classes.
    """
    step = error.__traceback__
    frame: FrameType | None = None
    while step is not None:
        if frame is not None and _has_argument(step.tb_frame, frame):
            return True
        frame, step = step.tb_frame, step.tb_next
    if frame is None or isinstance(error, _DATA_ERRORS):
        return False
    return _is_ours(str(frame.f_globals.get("__name__"))) and not _is_ours(type(error).__module__)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _has_argument(called: FrameType, value: FrameType) -> bool:
    """Return whether a function was called with this frame, by itself or in `*args`."""
    return any(
        one is value or (type(one) is tuple and any(item is value for item in one)) for one in called.f_locals.values()
    )
