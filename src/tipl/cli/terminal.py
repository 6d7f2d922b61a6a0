"""The three standard streams, whatever they are connected to.

In: standard input, output and error as the program finds them.  Out: streams that can be written to without a mishap.
"""

import contextlib
import io
import os
import sys


def open_streams() -> None:
    """Open those that are closed to nothing, and let them write letters that a terminal does not have as codes.

    A closed one would become the first file that is opened, a chunk of weights perhaps, with every print in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_broken_streams() -> None:
    """Connect to nothing those whose reader has gone; what they still hold is dropped."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())
