"""The package's frame: imports point one way, every module says what it is, what is slow loads late.

In: the source of the package.  Out: failures that name the module.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tipl

SOURCE = Path(tipl.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A folder, or a module beside the folders, imports only from those that stand above it.
ORDER = [
    "errors",
    "checks",
    "shapes",
    "files",
    "bundle",
    "progress",
    "parts",
    "processes",
    "config",
    "store",
    "rl",
    "collection",
    "representation",
    "models",
    "training",
    "forecasting",
    "evaluation",
    "acceleration",
    "integrations",
    "reporting",
    "reproduction",
    "cli",
    "__main__",
]
MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 12, 400, 80


def test_the_order_names_every_folder_and_no_other():
    assert {_folder(file) for file in FILES} - {"__init__"} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_up_the_order(file: Path):
    own = _folder(file)
    if own == "__init__":
        return  # the public surface stands for the whole package; nothing imports from it but the version
    allowed = {*ORDER[: ORDER.index(own) + 1], "__version__"}
    assert imported_modules(file.read_text()) <= allowed


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES} - {SOURCE}), ids=lambda folder: folder.name)
def test_inside_a_folder_imports_go_one_way(folder: Path):
    """What a module of a folder imports from its neighbours, late imports too, leads to no circle."""
    edges = {file.stem: imported_modules(file.read_text(), f"tipl.{folder.name}.") for file in folder.glob("*.py")}
    TopologicalSorter({name: names & set(edges) for name, names in edges.items()}).prepare()  # raises CycleError


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda folder: folder.name)
def test_a_folder_is_taken_in_at_a_glance(folder: Path):
    files = [file for file in folder.iterdir() if file.is_file()]
    assert len(files) <= MOST_FILES, sorted(file.name for file in files)
    assert {file.name: lines for file in files if (lines := len(file.read_text().splitlines())) > MOST_LINES} == {}


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda folder: folder.name)
def test_a_function_is_taken_in_at_a_glance(folder: Path):
    found = {
        f"{file.name}:{name}": lines for file in folder.glob("*.py") for name, lines in functions(file.read_text())
    }
    assert {name: lines for name, lines in found.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


def functions(source: str) -> Iterator[tuple[str, int]]:
    """The name of each function and method, and its lines from `def` on, docstring and inner functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_reader_of_functions_counts_lines_and_sees_methods():
    source = 'def one(): return 1\n\n\nclass C:\n    def two(self):\n        """Says it."""\n        return 2\n'
    assert dict(functions(source)) == {"one": 1, "two": 3}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_module_opens_with_what_it_is_and_what_flows_in_and_out(file: Path):
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring is not None
    assert re.match(r"\S.*\.\n\nIn: \S(.|\n)*?\sOut: \S", docstring), docstring


def test_the_command_line_and_the_package_load_nothing_slow():
    code = "import sys, tipl, tipl.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "numba", "zarr", "gymnasium", "matplotlib", "rich"} & set(loaded)


def test_every_public_name_is_there_and_says_so():
    code = "import tipl; from tipl import *; assert set(tipl.__all__) == set(dir(tipl)) <= set(globals())"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        tipl.nothing_like_this  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def imported_modules(source: str, above: str = "tipl.") -> set[str]:
    """What below `above` a source imports or reaches as `tipl.…`, wherever in the file, by its first name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=module, level=level, names=names):
                assert level == 0, "imports are absolute"
                found |= {f"{module}.{alias.name}" for alias in names}
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.Attribute(value=ast.Name(id="tipl"), attr=name):
                found.add(f"tipl.{name}")
    return {name.removeprefix(above).split(".")[0] for name in found if name.startswith(above)}


def test_the_reader_of_imports_sees_every_form():
    source = (
        "import os, tipl, tipl.store\nfrom tipl import models as m, training\n"
        "if os.path:\n    from tipl.reporting.x import y\n    tipl.rl.TrialBatch\n"
    )
    assert imported_modules(source) == {"store", "models", "training", "reporting", "rl"}
    assert imported_modules(source, "tipl.reporting.") == {"x"}


def _folder(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")
