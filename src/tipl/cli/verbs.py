"""The command line: a verb for every stage, with the settings in presets.py as its flags.

In: a parsed command line.  Out: files, and a line that says where they are.

What a verb needs is imported when it runs, so that `--help` and a mistyped flag answer at once. Threads are not set
here: a stage that starts processes gives each of them one, a stage that does not uses what torch and BLAS are given.
"""

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, get_args

from tipl import __version__
from tipl.checks import Count, NotNegative, Positive, Whole, is_address
from tipl.cli.catalog import catalog_flags
from tipl.cli.flags import add_settings, reader, with_flags
from tipl.cli.hub import hub_flags
from tipl.cli.known import add_ceiling
from tipl.cli.look import add_export, add_picture, add_video
from tipl.cli.parser import (
    SHIPPED,
    Parser,
    add_execution,
    add_imports,
    add_model,
    add_number,
    add_path,
    add_place,
    add_track,
    add_verb,
    execution_of,
    import_typed,
    wrote,
)
from tipl.cli.show import acceleration_facts, evaluation_facts, show, table_facts
from tipl.config.experiments import EXPERIMENTS
from tipl.config.jumps import JumpConfig, jumps_of
from tipl.config.presets import (
    CausalTrainConfig,
    CollectConfig,
    CompactConfig,
    Device,
    DiscreteCollectConfig,
    EvaluateConfig,
    ForecasterName,
    SVDConfig,
    TrainConfig,
)
from tipl.config.rivals import RIVALS
from tipl.errors import TiplError
from tipl.files import read_json

METRICS_FILE = "metrics.json"
_METRICS_BYTES = 1 << 30
PRESETS = tuple(dict.fromkeys(preset for presets in EXPERIMENTS.values() for preset in presets))


def _out_beside(store: str | Path, suffix: str) -> Path:
    """The folder beside a store that has its whole name and a suffix: run-lr0.01.eval of run-lr0.01; of one that lies
    elsewhere, here."""
    if isinstance(store, str):
        store = Path(store.rstrip("/").rpartition("/")[2].partition("@")[0])
    store = store if store.name not in ("", "..") else store.resolve()
    return store.with_name(store.name + suffix)


# The verbs, in the order in which the data flows: the flags of each, and what it calls.


def build_parser() -> ArgumentParser:
    """The whole command line. The flag of a setting that is not given is absent from the parsed namespace."""
    parser = Parser("tipl", description="Policy weights as trajectories: collect, model, forecast, judge.")
    parser.add_argument("--version", action="version", version=f"tipl {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for flags in (
        _reproduce_flags, _collect_flags, _fit_svd_flags, _train_flags, _evaluate_flags, add_ceiling, _forecast_flags,
        _accelerate_flags, add_export, add_picture, add_video, _report_flags,
    ):  # fmt: skip
        flags(verbs)
    told = "publish and fetch stores, models and policies"
    hub_flags(verbs.add_parser("hub", help=told).add_subparsers(title="verbs", metavar="VERB", required=True))
    data = verbs.add_parser("data", help="look at a store").add_subparsers(title="verbs", metavar="VERB", required=True)
    for flags in (_look_flags, catalog_flags, _compact_flags, _random_walk_flags):
        flags(data)
    return parser


def _reproduce_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "reproduce", _reproduce, "run one of the paper's experiments from collection to report")
    verb.add_argument("experiment", choices=EXPERIMENTS)
    verb.add_argument("--preset", choices=PRESETS, default="quick", help="its size [quick]")
    add_path(verb, "--out", "DIR", "[runs/<experiment>-<preset>]")


def _reproduce(arguments: Namespace) -> None:
    from tipl.reproduction import reproduce

    wrote(reproduce(arguments.experiment, arguments.preset, arguments.out))


def _collect_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "collect", _collect, "run PPO trials and store the weights that they pass through")
    add_place(verb, "--out", "STORE", "a new store, or one to go on with; also s3://BUCKET/NAME", required=True)
    verb.add_argument("--preset", choices=PRESETS, help="start from the experiment with this environment, in this size")
    add_number(verb, "--workers", Count, "N", "processes, or threads [one a core]")
    verb.add_argument("--device", choices=get_args(Device), default="cpu", help="of the policies and updates [cpu]")
    add_track(verb)
    add_execution(verb)
    add_settings(verb, CollectConfig, other=("discrete actions", DiscreteCollectConfig()))


def _collect(arguments: Namespace) -> None:
    config = collect_settings(arguments)
    from tipl.collection.collect import collect

    how = {name: getattr(arguments, name) for name in ("workers", "track", "device")}
    out = collect(config, arguments.out, **how, **execution_of(arguments))
    if not arguments.dry_run:
        wrote(arguments.out if is_address(arguments.out) else out)


def collect_settings(arguments: Namespace) -> CollectConfig:
    """The settings of `tipl collect`: the preset's where one is asked for, otherwise those for the kind of actions that
    the environment takes; and the flags over them.

    Raises:
        TiplError: the environment cannot be made, no experiment has it, or the settings do not fit together.
    """
    env_id = getattr(arguments, "env_id", CollectConfig.env_id)
    if arguments.preset is None:
        from tipl.collection.settings import default_config

        given = vars(arguments)
        if ":" in env_id:  # the user types a module, which may be in their folder
            from tipl.config.env_spec import allow_own_folder

            allow_own_folder()
        kwargs = {name: value for some in given.get("env_kwargs", []) for name, value in some.items()}
        return with_flags(default_config(env_id, given.get("backend", "auto"), kwargs), given)
    presets = {
        sizes[arguments.preset].collect.env_id: sizes[arguments.preset].collect for sizes in EXPERIMENTS.values()
    }
    if env_id not in presets:
        raise TiplError(
            f"--preset {arguments.preset} has no experiment with {env_id}; "
            f"leave it out, or give --env-id {' or '.join(presets)}"
        )
    return with_flags(presets[env_id], vars(arguments))


def _fit_svd_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "fit-svd", _fit_svd, "turn the weights of a store into codes")
    add_place(verb, "store", "STORE")
    add_path(verb, "--out", "CODES", required=True)
    add_settings(verb, SVDConfig)


def _fit_svd(arguments: Namespace) -> None:
    config = with_flags(SVDConfig(), vars(arguments))
    from tipl.representation import fit_svd

    wrote(fit_svd(arguments.store, arguments.out, config))


def _train_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "train", _train, "train a model on a store's training trials")
    add_place(verb, "store", "STORE", "several with --model causal", nargs="+")
    add_path(verb, "--out", "MODEL", required=True)
    add_path(verb, "--codes", "CODES", "what fit-svd wrote [fit anew]")
    other = "choose the causal model on all trials of these, of other environments [validation trials of STORE]"
    add_place(verb, "--validation", "STORE", other, nargs="+", default=[])
    verb.add_argument("--resume", action="store_true", help="go on from the last checkpoint in MODEL")
    add_track(verb)
    verb.add_argument("--device", choices=get_args(Device), default="cpu", help="that trains [cpu]")
    add_settings(verb, TrainConfig, other=("--model causal", CausalTrainConfig()))
    add_settings(verb.add_argument_group("the SVD, where no --codes are given"), SVDConfig)


def _train(arguments: Namespace) -> None:
    spare = [field.name for field in dataclasses.fields(SVDConfig) if field.name in arguments]
    if arguments.codes and spare:
        raise TiplError(f"--{spare[0]} has no effect on --codes that were fitted before; leave one of the two out")
    causal = getattr(arguments, "model", None) == CausalTrainConfig.model
    if causal and spare:
        raise TiplError(f"--{spare[0]} has no effect on --model causal, which takes no codes; leave it out")
    config = with_flags(CausalTrainConfig() if causal else TrainConfig(), vars(arguments))
    svd = with_flags(SVDConfig(), vars(arguments))
    how = {name: getattr(arguments, name) for name in ("codes", "validation", "resume", "track", "device")}
    from tipl.training import kept, started_first, train

    out = train(arguments.store, arguments.out, config, svd, **how)
    if started_first():
        wrote(out, f" ({kept(out)})")


def _evaluate_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "evaluate", _evaluate, "judge forecasts on a store's test trials, or on many stores'")
    add_place(verb, "store", "STORE", "several, or a folder of stores, are put in one table", nargs="+")
    told = "a folder, hf://USER/NAME, or the name of one shipped; a folder called like one is ./NAME"
    add_model(verb, told, dest="models", nargs="+", action="extend", default=[])
    add_path(verb, "--codes", "CODES", "also judge a line through these codes")
    told = "fit the baselines on other stores, of any policies, and judge every trial [the store itself]"
    add_place(verb, "--fit", "STORE", told, nargs="+")
    verb.add_argument("--no-returns", action="store_true", help="compare weights only; run no policy")
    add_imports(verb)
    add_path(verb, "--out", "EVAL", "[STORE.eval]")
    add_number(verb, "--workers", Count, "N", "processes, where several stores are judged [one a core]")
    add_execution(verb)
    add_settings(verb, EvaluateConfig)


def _evaluate(arguments: Namespace) -> None:
    config = with_flags(EvaluateConfig(), vars(arguments))
    import_typed(arguments)
    how = {name: getattr(arguments, name) for name in ("models", "fit", "trust")}
    how |= {"returns": not arguments.no_returns, **execution_of(arguments)}
    from tipl.evaluation.many import TABLE_FILE, are_many, evaluate_many

    if are_many(arguments.store):
        if arguments.codes or arguments.out is None:
            what = "--codes is of one store; leave it out" if arguments.codes else "several stores need --out; give one"
            raise TiplError(f"{what}.")
        out = evaluate_many(arguments.store, arguments.out, config, workers=arguments.workers, **how)
        done, facts = out / TABLE_FILE, table_facts
    else:
        from tipl.evaluation.evaluate import evaluate

        if arguments.workers:
            raise TiplError("--workers has no effect on one store, whose policies run in threads; leave it out.")
        if how.pop("dry_run"):
            raise TiplError("--dry-run is of several stores; of one, every shard runs an equal share of the policies.")
        (store,) = arguments.store
        out = evaluate(store, arguments.out or _out_beside(store, ".eval"), config, codes=arguments.codes, **how)
        done, facts = out / METRICS_FILE, evaluation_facts
    if done.exists() and not arguments.dry_run:
        show(facts(read_json(done, most=_METRICS_BYTES)), as_json=False)
        wrote(out)


def _forecast_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "forecast", _forecast, "write one predicted policy and run it")
    add_place(verb, "--store", "STORE", required=True)
    add_number(verb, "--trial", Whole, "N", "its seed", required=True)
    add_number(verb, "--origin", Whole, "N", "the last snapshot that the model sees", required=True)
    add_number(verb, "--horizon", Count, "N", "snapshots ahead", required=True)
    add_path(verb, "--out", "FILE.safetensors", required=True)
    note = (
        "a folder, hf://USER/NAME, or the name of one shipped [causal], which on a task that it has not learned is "
        "often behind an autoregression fitted on a few of the task's runs: tipl evaluate judges both"
    )
    add_model(verb, note, default=SHIPPED)
    add_number(verb, "--stretch", Positive, "X", "that the displacement from φ_t is multiplied by [1]", default=1.0)
    verb.add_argument("--adapt", action="store_true", help="correct it by what came of earlier forecasts in the trial")
    verb.add_argument("--seen", action="store_true", help="forecast a trial that the model has learned from")
    add_number(verb, "--episodes", Whole, "N", "that a return is the mean of [20]", default=20)
    add_imports(verb)
    verb.add_argument("--json", action="store_true", help="print JSON")


def _forecast(arguments: Namespace) -> None:
    from tipl.forecasting.forecast import forecast

    import_typed(arguments)
    names = "store", "trial", "origin", "horizon", "out", "model", "stretch", "adapt", "seen", "episodes", "trust"
    prediction = forecast(**{name: getattr(arguments, name) for name in names})
    show(dataclasses.asdict(prediction), arguments.json)


def _accelerate_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "accelerate", _accelerate, "train with jumps to forecast weights, and plainly, and compare")
    add_path(verb, "--out", "DIR", "a new folder, or one to go on with", required=True)
    names = f"{', '.join(get_args(ForecasterName))}, the folder of a causal model [line], or a rival of jumps, as in "
    names += f"outer:sigma=1.5 or outer+causal: {', '.join(RIVALS)}"
    verb.add_argument("--forecaster", type=reader(str), metavar="NAME", default="line", help=names)
    add_place(verb, "--fit", "STORE", "to fit the autoregression on [the package's own]")
    add_number(verb, "--plain-learning-rate", Positive, "X", "of the plain runs [--ppo.learning-rate]")
    add_number(verb, "--targets", float, "RETURN", "returns to count the steps to, too", nargs="+", default=[])
    add_number(verb, "--workers", Count, "N", "processes [one a core]")
    add_execution(verb)
    told = "Defaults are those for a line; other forecasters have their own where nothing is given (tipl.jumps_of)."
    add_track(verb)
    add_settings(verb.add_argument_group("the jumps", told), JumpConfig)
    add_settings(verb, CollectConfig, other=("discrete actions", DiscreteCollectConfig()))


def _accelerate(arguments: Namespace) -> None:
    arguments.preset = None
    config = collect_settings(arguments)
    jump = with_flags(jumps_of(arguments.forecaster), vars(arguments))
    from tipl.acceleration.compare import accelerate

    names = "forecaster", "plain_learning_rate", "fit", "targets", "workers", "track"
    how = {name: getattr(arguments, name) for name in names} | execution_of(arguments)
    out = accelerate(config, arguments.out, jump=jump, **how)
    if (out / METRICS_FILE).exists() and not arguments.dry_run:
        show(acceleration_facts(read_json(out / METRICS_FILE, most=_METRICS_BYTES)), as_json=False)
        wrote(out)


def _report_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "report", _report, "write evaluations and accelerations as one self-contained page")
    add_path(verb, "evals", "EVAL", nargs="+")
    add_path(verb, "--out", "FILE.html", required=True)
    add_path(verb, "--show", "FILE", "videos and pictures that become part of the page", nargs="+", default=[])


def _report(arguments: Namespace) -> None:
    from tipl.reporting import report

    wrote(report(arguments.evals, arguments.out, show=arguments.show))


def _look_flags(verbs: Any) -> None:
    info = add_verb(verbs, "info", _data_info, "what a store holds")
    verify = add_verb(verbs, "verify", _data_verify, "read everything that was committed and say what is damaged")
    for verb in (info, verify):
        add_place(verb, "store", "STORE")
        verb.add_argument("--json", action="store_true", help="print JSON")
    add_path(info, "--plot", "FILE", "also draw the trials' learning curves, as .svg, .png or .pdf")


def _data_info(arguments: Namespace) -> None:
    from tipl.catalog.listing import data_info

    facts = data_info(arguments.store)
    if arguments.plot is not None:
        from tipl.pictures.returns import plot_returns

        plot_returns(arguments.store, arguments.plot)
    show(facts, arguments.json)


def _data_verify(arguments: Namespace) -> None:
    from tipl.store import data_verify

    facts = data_verify(arguments.store)
    show(facts, arguments.json)
    if not facts["ok"]:
        seeds = sorted({part["trial"] for part in facts["damage"]} - {None})
        where = f" in the trials {', '.join(map(str, seeds))}: remove their folders and collect again" if seeds else ""
        raise TiplError(f"{arguments.store} is damaged{where}; {facts['damage'][0]['problem']}")


def _compact_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "compact", _compact, "write a store again in a fifth of its bytes, the weights rounded")
    add_place(verb, "store", "STORE")
    add_path(verb, "--out", "STORE2", "a new store, or one to go on with", required=True)
    add_settings(verb, CompactConfig)


def _compact(arguments: Namespace) -> None:
    config = with_flags(CompactConfig(), vars(arguments))
    from tipl.catalog.compact import compact

    wrote(compact(arguments.store, arguments.out, config))


def _random_walk_flags(verbs: Any) -> None:
    verb = add_verb(verbs, "random-walk", _random_walk, "write random walks, of which is known what can be forecast")
    add_path(verb, "--out", "STORE", required=True)
    for flag, kind, default, what in (
        ("--trials", Count, 50, "walks"),
        ("--snapshots", Count, 1951, "snapshots of each, T"),
        ("--dim", Count, 122, "weights of each, P"),
        ("--seed", Whole, 1, "of the first walk; the others count up from it"),
    ):
        add_number(verb, flag, kind, "N", f"{what} [{default}]", default=default)
    add_number(verb, "--drift", NotNegative, "D", "length, in steps of the noise [0]", default=0.0)
    verb.add_argument("--anneal", action="store_true", help="let the steps shrink linearly to 0")


def _random_walk(arguments: Namespace) -> None:
    from tipl.collection.random_walk import random_walk

    sizes = {name: getattr(arguments, name) for name in ("trials", "snapshots", "dim", "drift", "seed", "anneal")}
    wrote(random_walk(arguments.out, **sizes))
