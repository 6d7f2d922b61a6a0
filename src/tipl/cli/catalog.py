"""Verbs for stores as things with names: list, card, index, merge, export, import.

In: a parsed command line.  Out: stores, cards, manifests, or a list of them.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any, get_args

from tipl.checks import Count, Whole
from tipl.cli.flags import add_settings, with_flags
from tipl.cli.parser import add_number, add_path, add_place, add_verb, wrote
from tipl.cli.show import show
from tipl.config.presets import Activation, CompactConfig
from tipl.errors import TiplError

_GIVEN = {
    "name": "that people call it by [its folder's]",
    "license": "of the data, as an SPDX id: cc-by-4.0",
    "citation": "how to cite it",
    "made_by": "how it was made",
}


def catalog_flags(data: Any) -> None:
    for flags in (_list_flags, _card_flags, _index_flags, _merge_flags, _export_flags, _import_flags):
        flags(data)


def _list_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "list", _list, "list the stores in a folder: environment, trials, size, return")
    add_place(verb, "address", "ADDRESS", "a store, a collection, or a folder of stores [.]", nargs="?", default=".")
    verb.add_argument("--json", action="store_true", help="print JSON")


def _list(arguments: Namespace) -> None:
    from tipl.catalog.listing import data_list

    rows = data_list(arguments.address)
    facts = {key: sum(row[key] or 0 for row in rows) for key in ("trials", "snapshots", "bytes")}
    plain = all(row["name"] == Path(row["address"]).resolve().name for row in rows)  # as folders mostly are called
    if plain and not arguments.json:
        rows = [{key: value for key, value in row.items() if key != "name"} for row in rows]
    show({**facts, "stores": rows}, arguments.json)


def _card_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "card", _card, "write or refresh the README.md that says what a store holds")
    add_path(verb, "store", "STORE")
    for name, told in _GIVEN.items():
        verb.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", help=told)


def _card(arguments: Namespace) -> None:
    from tipl.catalog.card import write_card

    wrote(write_card(arguments.store, **{name: getattr(arguments, name) for name in _GIVEN}))


def _index_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "index", _index, "write the manifest of a folder's stores, which makes them a collection")
    add_path(verb, "folder", "FOLDER")


def _index(arguments: Namespace) -> None:
    from tipl.catalog.manifest import data_index

    wrote(data_index(arguments.folder))


def _merge_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "merge", _merge, "make one store of the trials of several that differ in their seeds alone")
    add_place(verb, "stores", "STORE", nargs="+")
    add_path(verb, "--out", "STORE", "a new store", required=True)
    verb.add_argument("--license", metavar="TEXT", help=f"{_GIVEN['license']} [the stores']")


def _merge(arguments: Namespace) -> None:
    from tipl.catalog.copies import data_merge

    wrote(data_merge(arguments.stores, arguments.out, license=arguments.license))


def _export_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "export", _export, "write some trials, environments or snapshots as a new store")
    add_place(verb, "address", "ADDRESS", "a store, or a collection")
    add_path(verb, "--out", "STORE", "a new store; of a collection a new collection", required=True)
    add_number(verb, "--trials", Whole, "N", "seeds of the trials to take [all]", nargs="+", default=[])
    verb.add_argument("--environments", metavar="ID", nargs="+", default=[], help="to take [all]")
    add_number(verb, "--every", Count, "N", "take every n-th snapshot [1]", default=1)
    verb.add_argument("--compact", action="store_true", help="round the weights, as `tipl data compact` does")
    add_settings(verb, CompactConfig)


def _export(arguments: Namespace) -> None:
    if "error" in arguments and not arguments.compact:
        raise TiplError("--error has no effect without --compact; add that, or leave it out")
    from tipl.catalog.copies import data_export

    chosen = {name: getattr(arguments, name) for name in ("trials", "environments", "every")}
    compact = with_flags(CompactConfig(), vars(arguments)) if arguments.compact else None
    wrote(data_export(arguments.address, arguments.out, compact=compact, **chosen))


def _import_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "import", _import, "make a store of checkpoints: SB3, CleanRL, torch, safetensors, npz")
    add_path(verb, "sources", "FOLDER", "of the checkpoints of one run; several make several trials", nargs="+")
    add_path(verb, "--out", "STORE", "a new store", required=True)
    verb.add_argument("--env-id", metavar="ID", required=True, help="what the policies act in, as Gymnasium calls it")
    add_number(verb, "--seed", Whole, "N", "of the first trial; the others count up from it [1]", default=1)
    verb.add_argument("--files", metavar="PATTERN", help="take only names like this one, such as 'policy_*.pt' [all]")
    verb.add_argument("--tensors", metavar="PATTERN", nargs="+", default=[], help="take only tensors like these [all]")
    verb.add_argument("--algorithm", metavar="NAME", help="that trained them [what SB3's models say]")
    verb.add_argument("--activation", choices=get_args(Activation), help="of the hidden layers [what SB3 says; tanh]")
    verb.add_argument("--weights-only", action="store_true", help="store policies to be judged by their weights alone")


def _import(arguments: Namespace) -> None:
    from tipl.catalog.importing import data_import

    names = ("env_id", "seed", "files", "tensors", "algorithm", "activation", "weights_only")
    wrote(data_import(arguments.sources, arguments.out, **{name: getattr(arguments, name) for name in names}))
