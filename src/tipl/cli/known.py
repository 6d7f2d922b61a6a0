"""The verb that asks how much can be known of coming weights at all.

In: a parsed command line.  Out: the folder of a ceiling, and a table of what forecasts know of it.
"""

from argparse import Namespace
from typing import Any

from tipl.checks import Count
from tipl.cli.flags import add_settings, with_flags
from tipl.cli.parser import add_imports, add_model, add_number, add_path, add_place, add_verb, import_typed, wrote
from tipl.cli.show import ceiling_facts, show
from tipl.config.ceiling import CeilingConfig
from tipl.files import read_json

_METRICS_BYTES = 1 << 30


def add_ceiling(verbs: Any) -> None:
    verb = add_verb(verbs, "ceiling", _ceiling, "branch a store's runs: how much of what comes can be known at all")
    add_place(verb, "store", "STORE", "what collect made")
    told = "causal models to hold against it: folders, or the name of one shipped; a folder called like one is ./NAME"
    add_model(verb, told, dest="models", nargs="+", action="extend", default=[])
    add_place(
        verb, "--fit", "STORE", "fit the baselines on other stores, and judge any trial [the store itself]", nargs="+"
    )
    add_number(verb, "--workers", Count, "N", "processes [one a core]")
    add_imports(verb)
    add_path(verb, "--out", "CEILING", "a new folder, or one to go on with", required=True)
    add_settings(verb, CeilingConfig)


def _ceiling(arguments: Namespace) -> None:
    config = with_flags(CeilingConfig(), vars(arguments))
    from tipl.evaluation.ceiling import ceiling

    import_typed(arguments)
    how = {name: getattr(arguments, name) for name in ("models", "fit", "workers", "trust")}
    out = ceiling(arguments.store, arguments.out, config, **how)
    show(ceiling_facts(read_json(out / "metrics.json", most=_METRICS_BYTES)), as_json=False)
    wrote(out)
