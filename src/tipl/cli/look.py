"""The verbs that show policies and hand them out: videos, pictures, other libraries' files.

In: a parsed command line.  Out: files, and a few lines about what they show.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from tipl.checks import Count, Positive, Whole
from tipl.cli.parser import (
    SHIPPED,
    add_imports,
    add_model,
    add_number,
    add_path,
    add_place,
    add_verb,
    import_typed,
    wrote,
)
from tipl.cli.show import show


def add_video(verbs: Any) -> None:
    verb = add_verb(verbs, "video", _video, "film policies side by side: now, as forecast, and what came")
    add_place(verb, "sources", "STORE|FILE.safetensors", "stores, and files that forecast wrote", nargs="+")
    add_path(verb, "--out", "FILE.mp4|FILE.gif", required=True)
    add_number(verb, "--origin", Whole, "N", "the last snapshot that the model sees [half of the way]")
    add_number(verb, "--horizon", Count, "N", "snapshots ahead [10]", default=10)
    _add_forecast(verb)
    told = "show these snapshots, and no forecast"
    add_number(verb, "--snapshots", Whole, "N", told, nargs="+", default=[])
    add_number(verb, "--episodes", Count, "N", "that the mean returns are over [20]", default=20)
    add_number(verb, "--seed", Whole, "N", "of the episodes [0]", default=0)
    add_number(verb, "--seconds", Positive, "X", "at most; longer episodes are shown faster [10]", default=10.0)
    add_number(verb, "--size", Count, "N", "pixels of each picture's longer side [320]", default=320)
    add_imports(verb)
    verb.add_argument("--json", action="store_true", help="print JSON")


def add_export(verbs: Any) -> None:
    verb = add_verb(verbs, "export", _export, "write a policy as ONNX, for Stable-Baselines3 or for torch")
    add_place(verb, "source", "STORE|FILE.safetensors", "a store, or what forecast wrote")
    add_number(verb, "--trial", Whole, "N", "its seed [the only one]")
    add_number(verb, "--snapshot", Whole, "N", "[the last]")
    told = "FILE.onnx, FILE.zip (PPO.load, with FILE.vecnormalize.pkl), FILE.pt (state_dict) or FILE.safetensors"
    add_path(verb, "--out", "FILE", told, required=True)
    add_imports(verb)


def _export(arguments: Namespace) -> None:
    from tipl.integrations.export import export

    import_typed(arguments)
    names = "source", "out", "trial", "snapshot", "trust"
    wrote(export(**{name: getattr(arguments, name) for name in names}))


def add_picture(verbs: Any) -> None:
    verb = add_verb(verbs, "picture", _picture, "draw the path in weight space and its forecast, returns as height")
    add_place(verb, "store", "STORE")
    add_path(verb, "--out", "FILE.svg|FILE.png|FILE.pdf", required=True)
    told = "forecast from these snapshots [half of the way]"
    add_number(verb, "--origins", Whole, "N", told, nargs="+", default=[])
    add_number(verb, "--horizon", Count, "N", "snapshots ahead [20]", default=20)
    _add_forecast(verb)
    add_number(verb, "--past", Count, "N", "snapshots before the first origin that are drawn [40]", default=40)
    told = "of the path's two leading directions, or of the true and the forecast displacement [path]"
    verb.add_argument("--plane", choices=("path", "forecast"), default="path", help=told)
    add_number(verb, "--grid", Count, "N", "points a side at which returns are measured [21]", default=21)
    add_number(verb, "--episodes", Count, "N", "that a return is the mean of [10]", default=10)
    add_number(verb, "--seed", Whole, "N", "of the episodes [0]", default=0)
    add_imports(verb)


def _picture(arguments: Namespace) -> None:
    from tipl.pictures.picture import picture

    import_typed(arguments)
    names = (
        "store", "out", "trial", "origins", "horizon", "past", "plane", "model", "stretch", "adapt", "seen", "grid",
        "episodes", "seed", "trust",
    )  # fmt: skip
    show(asdict(picture(**{name: getattr(arguments, name) for name in names})), as_json=False)


def _add_forecast(verb: ArgumentParser) -> None:
    """Flags of which forecast is shown."""
    add_number(verb, "--trial", Whole, "N", "its seed [the first test trial]")
    add_model(verb, "a folder, or the name of one shipped [causal]", default=SHIPPED)
    add_number(verb, "--stretch", Positive, "X", "that the displacement from φ_t is multiplied by [1]", default=1.0)
    verb.add_argument("--adapt", action="store_true", help="correct it by what came of earlier forecasts in the trial")
    verb.add_argument("--seen", action="store_true", help="forecast a trial that the model has learned from")


def _video(arguments: Namespace) -> None:
    from tipl.pictures.video import video

    import_typed(arguments)
    names = (
        "sources", "out", "trial", "origin", "horizon", "snapshots", "model", "stretch", "adapt", "seen", "episodes",
        "seed", "seconds", "size", "trust",
    )  # fmt: skip
    made = video(**{name: getattr(arguments, name) for name in names})
    facts = asdict(made)
    show(facts | {"policies": list(facts["policies"])}, arguments.json)
