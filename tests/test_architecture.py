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
    "text",
    "errors",
    "checks",
    "shapes",
    "files",
    "bundle",
    "stats",
    "progress",
    "parts",
    "stopping",
    "terminal",
    "processes",
    "presets",
    "experiments",
    "device",
    "env_spec",
    "env_described",
    "envs",
    "policy",
    "ppo",
    "stack",
    "stack_torch",
    "store",
    "walks",
    "representation",
    "compact",
    "windows",
    "model",
    "train",
    "shipped",
    "forecaster",
    "forecast",
    "seen",
    "adapt",
    "subspace",
    "baselines",
    "jump",
    "returns",
    "score",
    "origins",
    "weight_errors",
    "apart",
    "forecast_returns",
    "evaluate",
    "predict",
    "collect",
    "live",
    "arms",
    "accelerate",
    "across",
    "flat",
    "agent",
    "recorded_actor",
    "record",
    "jumping",
    "accelerator",
    "sb3",
    "report",
    "reproduce",
    "flags",
    "show",
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
    """What of the package a source imports or reaches as `tipl.…`, wherever in the file, by its first name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module="tipl", names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, level=level):
                assert level == 0, "imports are absolute"
                found |= _inside([module or ""])
            case ast.Import(names=names):
                found |= _inside([alias.name for alias in names])
            case ast.Attribute(value=ast.Name(id="tipl"), attr=name):
                found.add(name)
    return found


def test_the_reader_of_imports_sees_every_form():
    source = (
        "import os, tipl, tipl.store\nfrom tipl import model as m, train\n"
        "if os.path:\n    from tipl.report.x import y\n    tipl.stack.Stack\n"
    )
    assert imported_modules(source) == {"store", "model", "train", "report", "stack"}


def _inside(modules: list[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("tipl.")}


def _module(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")
