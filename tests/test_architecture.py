"""The package's frame: imports point one way, every module says what it is, what is slow loads late.

In: the source of the package.  Out: failures that name the module.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tipl

SOURCE = Path(tipl.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A module imports only from modules that stand above it. A package counts as one module.
ORDER = [
    "errors",
    "stats",
    "progress",
    "presets",
    "envs",
    "policy",
    "ppo",
    "stack",
    "store",
    "returns",
    "representation",
    "model",
    "train",
    "forecast",
    "evaluate",
    "collect",
    "report",
    "reproduce",
    "cli",
    "__main__",
]


def test_the_order_names_every_module_and_no_other():
    assert {_module(file) for file in FILES} - {"__init__"} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_up_the_order(file: Path):
    own = _module(file)
    if own == "__init__":
        return  # the public surface stands for the whole package; nothing imports from it but the version
    allowed = {*ORDER[: ORDER.index(own) + 1], "__version__"}
    assert imported_modules(file.read_text()) <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_module_opens_with_what_it_is_and_what_flows_in_and_out(file: Path):
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring is not None
    assert re.match(r"\S.*\.\n\nIn: \S(.|\n)*?\sOut: \S", docstring), docstring


def test_the_command_line_and_the_package_load_nothing_slow():
    code = "import sys, tipl, tipl.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "numba", "zarr", "gymnasium", "matplotlib", "rich"} & set(loaded)


def test_every_public_name_is_there_and_says_so():
    code = "import tipl; from tipl import *; assert set(tipl.__all__) == set(dir(tipl)) <= set(globals())"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        tipl.nothing_like_this  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def imported_modules(source: str) -> set[str]:
    """Which of the package's modules a source imports, wherever in the file; `__version__` for the version."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""] if node.module != "tipl" else [f"tipl.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {
            name.partition(".")[2].partition(".")[0] or name for name in names if name.partition(".")[0] == "tipl"
        }
    return found


def test_the_reader_of_imports_sees_every_form():
    source = (
        "import os, tipl.store, tipl\nfrom tipl import model as m, train\nif os:\n    from tipl.report.x import y\n"
    )
    assert imported_modules(source) == {"store", "tipl", "model", "train", "report"}


def _module(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")
