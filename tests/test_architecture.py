"""The package's frame: imports point one way, every module says what it is, what is slow loads late.

In: the source of the package.  Out: failures that name the module.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np
import pytest

import tipl
from tipl.errors import TiplError
from tipl.representation import Codes

SOURCE = Path(tipl.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
ROOT = Path(__file__).parents[1]

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
    "remote",
    "config",
    "executors",
    "store",
    "rl",
    "collection",
    "catalog",
    "representation",
    "models",
    "training",
    "forecasting",
    "evaluation",
    "acceleration",
    "integrations",
    "reporting",
    "pictures",
    "publishing",
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


@pytest.mark.parametrize("folder", ["src", "studies", "examples"])  # benchmarks time what is inside
def test_a_private_name_stays_in_its_module(folder: str):
    found = {file.name: names for file in (ROOT / folder).rglob("*.py") if (names := private_names(file.read_text()))}
    assert not found


def private_names(source: str) -> set[str]:
    """Names with an underscore in front that a module takes from another one, by import or by attribute of it."""
    tree, ours, found = ast.parse(source), set(), set()
    roots = {"tipl", *(file.stem for file in (ROOT / "studies").glob("*.py"))}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in roots:
                found |= {name for each in names for name in (*module.split("."), each.name) if is_private(name)}
                ours |= {each.asname or each.name for each in names}
            case ast.Import(names=names):
                ours |= {each.asname or "tipl" for each in names if each.name.split(".")[0] == "tipl"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inner = node.value
            while isinstance(inner, ast.Attribute):
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in ours:
                found.add(node.attr)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in dir(NamedTuple("Any", []))


def test_the_reader_of_private_names():
    source = (
        "import os, tipl, tipl.rl as rl\nfrom ray import _private\nfrom tipl.store import _a, Class\n"
        "from tipl.forecasting import baselines as lines\nfrom tipl import __version__\nfrom tipl._b import c\n"
        "from evidence import _d\nlines._e(c.f)\ntipl.collection.collect._g\nrl._h\nClass._i\nClass._fields\n"
        "self._j\nlines.__name__\nos._exit(0)\n"
    )
    assert private_names(source) == {"_a", "_b", "_d", "_e", "_g", "_h", "_i"}


def test_the_command_line_and_the_package_load_nothing_slow():
    code = "import sys, tipl, tipl.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "numba", "zarr", "gymnasium", "matplotlib", "rich"} & set(loaded)


def test_every_public_name_is_there_and_says_so():
    code = "import tipl; from tipl import *; assert set(tipl.__all__) == set(dir(tipl)) <= set(globals())"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        tipl.nothing_like_this  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", sorted(set(tipl.__all__) - {"EXPERIMENTS", "__version__"}))
def test_a_public_name_says_what_it_is_for(name: str):
    public = getattr(tipl, name)
    assert vars(public)["__doc__"] if inspect.isclass(public) else undocumented_parts(public) == []


def test_public_methods_say_what_they_take_and_give():
    """Of all classes that the package and its folders export."""
    places = ["", ".store", ".representation", ".models", ".training"]
    modules = [importlib.import_module(f"tipl{place}") for place in places]
    found = [getattr(module, name) for module in modules for name in module.__all__]
    if importlib.util.find_spec("stable_baselines3"):
        sb3 = importlib.import_module("tipl.integrations.sb3")
        found += [sb3.SB3Recorder, sb3.SB3Accelerator]
    classes = {each for each in found if inspect.isclass(each)}
    assert len(classes) > 40
    told = {f"{public.__name__}.{name}": unsaid(*of) for public in classes for name, of in _methods(public)}
    assert {name: missing for name, missing in told.items() if missing} == {}


def _methods(public: type) -> Iterator[tuple[str, tuple[Any, str]]]:
    """The public methods and properties of a class that are ours, and `__init__` with the words of the class."""
    is_called = public.__name__ not in _OPENED and not dataclasses.is_dataclass(public)
    for name, member in inspect.getmembers_static(public):
        bare = next((each for at in ("fget", "func", "__func__") if (each := getattr(member, at, None))), member)
        ours = (getattr(bare, "__module__", None) or "").startswith("tipl.") and inspect.isfunction(bare)
        if not ours or bare.__name__ == "<lambda>" or (name.startswith("_") and name not in ("__init__", "__call__")):
            continue
        if name != "__init__":
            yield name, (bare, "")
        elif is_called:
            yield name, (public.__init__, inspect.getdoc(public) or "")


def unsaid(method: Callable[..., Any], of_class: str = "") -> list[str]:
    """What the docstring of a method leaves out: what it does, an argument, the shape of an array, an error."""
    text = inspect.getdoc(method) or ""
    words = re.findall(r"\w+", f"{text} {of_class}")
    arguments = [
        name for name in inspect.signature(method).parameters if name not in ("self", "cls", *_OBVIOUS, *words)
    ]
    gives = str(inspect.signature(method).return_annotation)
    raises = "raise TiplError" in inspect.getsource(inspect.unwrap(method))
    return (
        ([] if text or of_class else ["the first line"])
        + arguments
        + (["a shape"] if re.fullmatch(r".*\b(ndarray|Tensor)'?>?", gives) and "[" not in text else [])
        + (["Raises"] if raises and "Raises:\n" not in text else [])
    )


_OBVIOUS = ("seed", "name", "path", "store_path")


def test_the_reader_of_methods_misses_what_is_missing():
    def bare(self, path, other) -> np.ndarray:
        raise TiplError("")

    def whole(self, other) -> np.ndarray:
        """Return the other, [N].

        Raises:
            TiplError: always.
        """
        raise TiplError("")

    assert unsaid(bare) == ["the first line", "other", "a shape", "Raises"] and unsaid(whole) == []


def undocumented_parts(function: Callable[..., Any]) -> list[str]:
    """What the docstring of a function leaves out: a first line that says what it does, an argument, its errors."""
    text = inspect.getdoc(function) or ""
    found = re.search(r"^Args:\n((?: .*\n?)+)", text, re.MULTILINE)
    named = re.findall(r"^    (\w[\w, ]*):", found[1] if found else "", re.MULTILINE)
    missing = [name for name in inspect.signature(function).parameters if name not in ", ".join(named).split(", ")]
    says_what_it_does = re.match(r"(?!(An?|The|What|How) )[A-Z]\w+ [^\n]*\.(\n|$)", text)
    return (
        ([] if says_what_it_does else ["the first line"])
        + missing
        + ([] if "\nRaises:\n    TiplError: " in text else ["Raises"])
    )


def test_the_reader_of_docstrings_misses_what_is_missing():
    def bare(one, two): ...

    def first_lines_alone(one):
        """The one.

        Raises:
            TiplError: always.
        """

    def whole(one, two, three):
        """Return one.

        Args:
            one, two: numbers;
                four: too.
            three: a number.

        Raises:
            TiplError: always.
        """

    assert undocumented_parts(bare) == ["the first line", "one", "two", "Raises"]
    assert undocumented_parts(first_lines_alone) == ["the first line", "one"]
    assert undocumented_parts(whole) == []


_PATHS = ("codes", "evals", "fit", "folder", "models", "name_or_path", "out", "path", "store", "store_path",
          "tensorboard")  # fmt: skip
"""What arguments are called that are paths, or several."""
_OPENED = ("Codes", "Collection", "Store", "Trial", "TrialWriter")  # whose `__init__` is for their class methods


@pytest.mark.parametrize("name", [*sorted(set(tipl.__all__) - {"EXPERIMENTS", "__version__"}), "SB3Recorder"])
def test_a_path_is_a_str_or_any_os_pathlike(name: str):
    if name == "SB3Recorder":
        pytest.importorskip("stable_baselines3")
    public = getattr(importlib.import_module("tipl.integrations.sb3") if name == "SB3Recorder" else tipl, name)
    functions = {name: public}
    if inspect.isclass(public):
        functions = {member: getattr(public, member) for member in vars(public) if not member.startswith("_")}
        functions |= {} if name in _OPENED else {"__init__": public.__init__}
    for where, function in functions.items():
        for argument in inspect.signature(function).parameters.values() if callable(function) else ():
            kinds = set(_kinds(argument.annotation))
            assert Path not in kinds, (where, argument)
            assert argument.name not in _PATHS or {str, os.PathLike} <= kinds or Codes in kinds, (where, argument)


def _kinds(annotation: Any) -> Iterator[Any]:
    yield get_origin(annotation) or annotation
    for part in get_args(annotation):
        for each in part if isinstance(part, list) else [part]:  # the arguments of a Callable are a list
            yield from _kinds(each)


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
