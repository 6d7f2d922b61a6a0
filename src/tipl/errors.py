"""The two ways in which the program stops early.

In: what the user gave, or a Ctrl-C.  Out: one clear line and an exit code (see cli.py).
"""

from tipl.text import printable


class TiplError(ValueError):
    """The user's input cannot be used. The message says what is wrong and what to do (exit code 2)."""

    def __str__(self) -> str:
        """Return the message on one line: it may quote what a file says."""
        return printable(" ".join(super().__str__().split()))
