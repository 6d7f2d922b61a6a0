"""What the user is told where the program stops early, and text from outside made safe to show.

In: what the user gave, any text.  Out: one clear line (cli/main.py adds the exit code).
"""


class TiplError(ValueError):
    """The user's input cannot be used. The message says what is wrong and what to do (exit code 2)."""

    def __str__(self) -> str:
        """Return the message on one line: it may quote what a file says."""
        return printable(" ".join(super().__str__().split()))


def printable(text: object) -> str:
    r"""Return `str(text)` with control, format and other unprintable characters escaped: ESC becomes `\x1b`."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
