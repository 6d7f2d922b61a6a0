"""Facts on the terminal: line by line, with a table for every list of rows, or as JSON.

In: a mapping of facts.  Out: text on standard output.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tipl.text import printable


def show(facts: Mapping[str, Any], as_json: bool) -> None:
    """Print facts as JSON, or line by line, with a table for every list of rows."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from tipl.progress import PlainConsole

    console = PlainConsole()
    for name, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            _show_table(console, name, value)
        else:
            console.print(f"{_words(name)}: {_cell(name, value)}", soft_wrap=True)


def _show_table(console: Any, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """What is the same in every row is said once, above the table."""
    from rich.table import Table
    from rich.text import Text

    same = [name for name in rows[0] if len(rows) > 1 and all(row[name] == rows[0][name] for row in rows)]
    for name in same:
        console.print(f"all {_words(title)}: {_words(name)} {_cell(name, rows[0][name])}", soft_wrap=True)
    names = [name for name in rows[0] if name not in same]
    table = Table(*map(_words, names), title=_words(title))
    for row in rows:
        table.add_row(*(Text(printable(_cell(name, row[name]))) for name in names))
    console.print(table)


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    match value:
        case int() if name.endswith("bytes"):
            return f"{value / 1e6:,.1f} MB"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{key} {item}" for key, item in value.items())
        case list():
            return ", ".join(map(str, value)) or "none"
    return str(value)
