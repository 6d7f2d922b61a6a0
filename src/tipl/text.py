"""What files and users say, made safe to show: nothing in it moves a cursor, colors a line or turns its direction.

In: any text.  Out: the same text on one line, every character that is not visible written as its escape.
"""


def printable(text: object) -> str:
    r"""Return `str(text)` with control, format and other unprintable characters escaped: ESC becomes `\x1b`."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
