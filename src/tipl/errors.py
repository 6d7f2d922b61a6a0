"""The two ways in which the program stops early.

In: what the user gave, or a Ctrl-C.  Out: one clear line and an exit code (see cli.py).
"""


class TiplError(ValueError):
    """The user's input cannot be used. The message says what is wrong and what to do (exit code 2)."""
