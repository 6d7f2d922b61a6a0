"""What all verbs' flags are made with: a parser that fails in one line, flags for paths, models and numbers.

In: names, kinds and what is told of them.  Out: flags of an argparse parser; the line that ends a verb.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tipl.checks import AnyPath, Place, is_address
from tipl.cli.flags import add_settings, reader, with_flags
from tipl.config.execution import Execution
from tipl.errors import TiplError, printable

SHIPPED = "causal"
SHIPPED_NAMES = (SHIPPED, "zoo")
"""The names of the models that come with the package, as `forecasting.shipped` has them, which is slow to import."""


class Parser(ArgumentParser):
    """Takes no abbreviated flags, which would change their meaning when a flag is added; fails with one line."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise TiplError(f"{message}; see {self.prog} --help")


def add_verb(verbs: Any, name: str, run: Callable[[Namespace], None], what: str) -> ArgumentParser:
    verb = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    verb.set_defaults(run=run)
    return verb


def add_path(verb: ArgumentParser, name: str, metavar: str, told: str | None = None, **options: Any) -> None:
    verb.add_argument(name, type=reader(AnyPath), metavar=metavar, help=told, **options)


def add_place(verb: ArgumentParser, name: str, metavar: str, told: str | None = None, **options: Any) -> None:
    """Of what is read: a path or an address."""
    verb.add_argument(name, type=reader(Place), metavar=metavar, help=told, **options)


def add_model(verb: ArgumentParser, told: str, **options: Any) -> None:
    def name_or_path(text: str) -> str | Path:
        """`./causal` is not the model called `causal`; a Path would drop what tells them apart."""
        path = reader(Place)(text)
        is_name = str(path) in SHIPPED_NAMES
        return text if text in SHIPPED_NAMES or is_address(path) else path.absolute() if is_name else path

    verb.add_argument("--model", type=name_or_path, metavar="MODEL", help=told, **options)


def add_number(verb: ArgumentParser, flag: str, kind: Any, metavar: str, told: str, **options: Any) -> None:
    verb.add_argument(flag, type=reader(kind), metavar=metavar, help=told, **options)


def add_track(verb: ArgumentParser) -> None:
    told = "also write curves: tensorboard[=FOLDER], wandb[=PROJECT] or trackio[=PROJECT]"
    verb.add_argument("--track", type=reader(str), metavar="NAME", help=told)


def add_imports(verb: ArgumentParser) -> None:
    verb.add_argument(
        "--trust", action="store_true", help="import the modules that the store names for its environments: runs code"
    )
    verb.add_argument(
        "--import", dest="imports", metavar="MODULE", nargs="+", default=[], help="that register environments, first"
    )


def import_typed(arguments: Namespace) -> None:
    if arguments.imports:
        from tipl.config import env_spec

        env_spec.import_typed(arguments.imports)


def add_execution(verb: ArgumentParser) -> None:
    add_settings(verb.add_argument_group("where it runs"), Execution)
    verb.add_argument("--dry-run", action="store_true", help="print what each shard would do, and do nothing")


def execution_of(arguments: Namespace) -> dict[str, Any]:
    return {"execution": with_flags(Execution(), vars(arguments)), "dry_run": arguments.dry_run}


def wrote(path: Path | str, what: str = "") -> None:
    print(f"wrote {printable(path)}{printable(what)}")
