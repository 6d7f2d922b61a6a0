"""The command line: a verb for every stage, with the settings in presets.py as its flags.

In: the command line.  Out: files, a line that says where they are, and an exit code (0 done, 1 a bug, 2 the user's
input, 130 interrupted).

What a verb needs is imported when it runs, so that `--help` and a mistyped flag answer at once. Threads are not set
here: a stage that starts processes gives each of them one, a stage that does not uses what torch and BLAS are given.
"""

import argparse
import dataclasses
import errno
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from tipl import __version__
from tipl.errors import TiplError
from tipl.experiments import EXPERIMENTS
from tipl.flags import add_settings, with_flags
from tipl.presets import (
    CausalTrainConfig,
    CollectConfig,
    CompactConfig,
    Device,
    DiscreteCollectConfig,
    EvaluateConfig,
    ForecasterName,
    JumpConfig,
    SVDConfig,
    TrainConfig,
    jumps_of,
)
from tipl.show import show
from tipl.text import printable

PRESETS = tuple(dict.fromkeys(preset for presets in EXPERIMENTS.values() for preset in presets))
INTERRUPTED = "tipl: interrupted; what was committed stays readable, the same command goes on (train: with --resume)"

# What a disk or a path of the user's can do to any stage; every other OSError is a bug.
_USER_OS_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""

    def run() -> None:
        arguments = build_parser().parse_args(argv)
        arguments.run(arguments)

    return exit_code(run)


def exit_code(run: Callable[[], None]) -> int:
    """Run and say how it ended; an internal error comes out as the exception that it is (Python's exit code 1)."""
    try:
        run()
    except TiplError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in _USER_OS_ERRORS:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _refuse(f"{error.strerror}{where}; what was committed stays readable")
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


def _refuse(message: str) -> int:
    print(f"tipl: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2


class _Parser(ArgumentParser):
    """Takes no abbreviated flags, which would change their meaning when a flag is added; fails with one line."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise TiplError(f"{message}; see {self.prog} --help")


def _add_verb(verbs: Any, name: str, run: Callable[[Namespace], None], what: str) -> ArgumentParser:
    verb = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    verb.set_defaults(run=run)
    return verb


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


# The verbs, in the order in which the data flows.


def build_parser() -> ArgumentParser:
    """The whole command line. The flag of a setting that is not given is absent from the parsed namespace."""
    parser = _Parser("tipl", description="Policy weights as trajectories: collect, model, forecast, judge.")
    parser.add_argument("--version", action="version", version=f"tipl {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    verb = _add_verb(verbs, "reproduce", _reproduce, "run one of the paper's experiments from collection to report")
    verb.add_argument("experiment", choices=EXPERIMENTS)
    verb.add_argument("--preset", choices=PRESETS, default="quick", help="its size [quick]")
    verb.add_argument("--out", type=Path, metavar="DIR", default=None, help="[runs/<experiment>-<preset>]")

    verb = _add_verb(verbs, "collect", _collect, "run PPO trials and store the weights that they pass through")
    verb.add_argument("--out", type=Path, metavar="STORE", required=True, help="a new store, or one to go on with")
    verb.add_argument("--preset", choices=PRESETS, help="start from the experiment with this environment, in this size")
    verb.add_argument("--workers", type=_positive, metavar="N", default=None, help="processes, or threads [one a core]")
    verb.add_argument(
        "--device",
        choices=get_args(Device),
        default="cpu",
        help="of the policies and updates [cpu]",
    )
    verb.add_argument("--tensorboard", type=Path, metavar="DIR", default=None, help="also write curves for TensorBoard")
    add_settings(verb, CollectConfig, other=("discrete actions", DiscreteCollectConfig()))

    verb = _add_verb(verbs, "fit-svd", _fit_svd, "turn the weights of a store into codes")
    verb.add_argument("store", type=Path, metavar="STORE")
    verb.add_argument("--out", type=Path, metavar="CODES", required=True)
    add_settings(verb, SVDConfig)

    verb = _add_verb(verbs, "train", _train, "train a model on a store's training trials")
    verb.add_argument("store", type=Path, metavar="STORE", nargs="+", help="several with --model causal")
    verb.add_argument("--out", type=Path, metavar="MODEL", required=True)
    verb.add_argument("--codes", type=Path, metavar="CODES", default=None, help="what fit-svd wrote [fit anew]")
    verb.add_argument("--resume", action="store_true", help="go on from the last checkpoint in MODEL")
    verb.add_argument("--tensorboard", type=Path, metavar="DIR", default=None, help="also write curves for TensorBoard")
    verb.add_argument("--device", choices=get_args(Device), default="cpu", help="that trains [cpu]")
    add_settings(verb, TrainConfig, other=("--model causal", CausalTrainConfig()))
    add_settings(verb.add_argument_group("the SVD, where no --codes are given"), SVDConfig)

    verb = _add_verb(verbs, "evaluate", _evaluate, "judge forecasts on a store's test trials")
    verb.add_argument("store", type=Path, metavar="STORE")
    verb.add_argument("--model", type=Path, metavar="MODEL", dest="models", nargs="+", action="extend", default=[])
    verb.add_argument("--codes", type=Path, metavar="CODES", default=None, help="also judge a line through these codes")
    verb.add_argument(
        "--fit",
        type=Path,
        metavar="STORE",
        default=None,
        help="fit the baselines on this other store and judge every trial [the store itself]",
    )
    verb.add_argument("--no-returns", action="store_true", help="compare weights only; run no policy")
    verb.add_argument("--out", type=Path, metavar="EVAL", default=None, help="[STORE with the suffix .eval]")
    add_settings(verb, EvaluateConfig)

    verb = _add_verb(verbs, "forecast", _forecast, "write one predicted policy and run it")
    verb.add_argument("--store", type=Path, metavar="STORE", required=True)
    for flag, what in (
        ("--trial", "its seed"),
        ("--origin", "the last snapshot that the model sees"),
        ("--horizon", "snapshots ahead"),
    ):
        verb.add_argument(flag, type=int, metavar="N", required=True, help=what)
    verb.add_argument("--out", type=Path, metavar="FILE.safetensors", required=True)
    verb.add_argument(
        "--model", metavar="MODEL", default="causal", help="a folder, or the name of one shipped [causal]"
    )
    verb.add_argument(
        "--stretch", type=float, metavar="X", default=1.0, help="that the displacement from φ_t is multiplied by [1]"
    )
    verb.add_argument("--adapt", action="store_true", help="correct it by what came of earlier forecasts in the trial")
    verb.add_argument("--episodes", type=int, metavar="N", default=20, help="that a return is the mean of [20]")
    verb.add_argument("--json", action="store_true", help="print JSON")

    verb = _add_verb(verbs, "accelerate", _accelerate, "train with jumps to forecast weights, and plainly, and compare")
    verb.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new folder, or one to go on with")
    verb.add_argument(
        "--forecaster",
        metavar="NAME",
        default="line",
        help=f"{', '.join(get_args(ForecasterName))} or the folder of a causal model [line]",
    )
    verb.add_argument(
        "--fit", type=Path, metavar="STORE", default=None, help="to fit the autoregression on [the package's own]"
    )
    verb.add_argument(
        "--plain-learning-rate", type=float, metavar="X", default=None, help="of the plain runs [--ppo.learning-rate]"
    )
    verb.add_argument(
        "--targets", type=float, metavar="RETURN", nargs="+", default=[], help="returns to count the steps to, too"
    )
    verb.add_argument("--workers", type=_positive, metavar="N", default=None, help="processes [one a core]")
    told = (
        "Defaults are those for a line; other forecasters have their own where nothing is given (tipl.presets.JUMPS)."
    )
    add_settings(verb.add_argument_group("the jumps", told), JumpConfig)
    add_settings(verb, CollectConfig, other=("discrete actions", DiscreteCollectConfig()))

    verb = _add_verb(verbs, "report", _report, "write evaluations and accelerations as one self-contained page")
    verb.add_argument("evals", type=Path, metavar="EVAL", nargs="+")
    verb.add_argument("--out", type=Path, metavar="FILE.html", required=True)

    data = verbs.add_parser("data", help="look at a store").add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (
        _add_verb(data, "info", _data_info, "what a store holds"),
        _add_verb(data, "verify", _data_verify, "read everything that was committed and say what is damaged"),
    ):
        verb.add_argument("store", type=Path, metavar="STORE")
        verb.add_argument("--json", action="store_true", help="print JSON")

    verb = _add_verb(data, "compact", _compact, "write a store again in a fifth of its bytes, the weights rounded")
    verb.add_argument("store", type=Path, metavar="STORE")
    verb.add_argument("--out", type=Path, metavar="STORE2", required=True, help="a new store, or one to go on with")
    add_settings(verb, CompactConfig)

    verb = _add_verb(data, "random-walk", _random_walk, "write random walks, of which is known what can be forecast")
    verb.add_argument("--out", type=Path, metavar="STORE", required=True)
    for flag, default, what in (
        ("--trials", 50, "walks"),
        ("--snapshots", 1951, "snapshots of each, T"),
        ("--dim", 122, "weights of each, P"),
        ("--seed", 1, "of the first walk; the others count up from it"),
    ):
        verb.add_argument(flag, type=int, metavar="N", default=default, help=f"{what} [{default}]")
    verb.add_argument("--drift", type=float, metavar="D", default=0.0, help="length, in steps of the noise [0]")
    verb.add_argument("--anneal", action="store_true", help="let the steps shrink linearly to 0")
    return parser


def _reproduce(arguments: Namespace) -> None:
    from tipl.reproduce import reproduce

    _wrote(reproduce(arguments.experiment, arguments.preset, arguments.out))


def _collect(arguments: Namespace) -> None:
    config = collect_settings(arguments)
    from tipl.collect import collect

    how = {name: getattr(arguments, name) for name in ("workers", "tensorboard", "device")}
    _wrote(collect(config, arguments.out, **how))


def collect_settings(arguments: Namespace) -> CollectConfig:
    """The settings of `tipl collect`: the preset's where one is asked for, otherwise those for the kind of actions that
    the environment takes; and the flags over them.

    Raises:
        TiplError: the environment cannot be made, no experiment has it, or the settings do not fit together.
    """
    env_id = getattr(arguments, "env_id", CollectConfig.env_id)
    if arguments.preset is None:
        from tipl.collect import default_config

        given = vars(arguments)
        return with_flags(default_config(env_id, given.get("backend", "auto")), given)
    presets = {
        sizes[arguments.preset].collect.env_id: sizes[arguments.preset].collect for sizes in EXPERIMENTS.values()
    }
    if env_id not in presets:
        raise TiplError(
            f"--preset {arguments.preset} has no experiment with {env_id}; "
            f"leave it out, or give --env-id {' or '.join(presets)}"
        )
    return with_flags(presets[env_id], vars(arguments))


def _fit_svd(arguments: Namespace) -> None:
    config = with_flags(SVDConfig(), vars(arguments))
    from tipl.representation import fit_svd

    _wrote(fit_svd(arguments.store, arguments.out, config))


def _train(arguments: Namespace) -> None:
    spare = [field.name for field in dataclasses.fields(SVDConfig) if field.name in arguments]
    if arguments.codes and spare:
        raise TiplError(f"--{spare[0]} has no effect on --codes that were fitted before; leave one of the two out")
    causal = getattr(arguments, "model", None) == CausalTrainConfig.model
    if causal and spare:
        raise TiplError(f"--{spare[0]} has no effect on --model causal, which takes no codes; leave it out")
    config = with_flags(CausalTrainConfig() if causal else TrainConfig(), vars(arguments))
    svd = with_flags(SVDConfig(), vars(arguments))
    how = {name: getattr(arguments, name) for name in ("codes", "resume", "tensorboard", "device")}
    from tipl.train import kept, started_first, train

    out = train(arguments.store, arguments.out, config, svd, **how)
    if started_first():
        _wrote(out, f" ({kept(out)})")


def _evaluate(arguments: Namespace) -> None:
    config = with_flags(EvaluateConfig(), vars(arguments))
    out = arguments.out or arguments.store.with_suffix(".eval")
    from tipl.evaluate import evaluate

    how = {name: getattr(arguments, name) for name in ("models", "codes", "fit")}
    _wrote(evaluate(arguments.store, out, config, **how, returns=not arguments.no_returns))


def _forecast(arguments: Namespace) -> None:
    from tipl.predict import forecast_policy

    names = "store", "trial", "origin", "horizon", "out", "model", "stretch", "adapt", "episodes"
    prediction = forecast_policy(**{name: getattr(arguments, name) for name in names})
    show(dataclasses.asdict(prediction), arguments.json)


def _accelerate(arguments: Namespace) -> None:
    arguments.preset = None
    config = collect_settings(arguments)
    jump = with_flags(jumps_of(arguments.forecaster), vars(arguments))
    from tipl.accelerate import accelerate

    names = "forecaster", "plain_learning_rate", "fit", "targets", "workers"
    _wrote(accelerate(config, arguments.out, jump=jump, **{name: getattr(arguments, name) for name in names}))


def _report(arguments: Namespace) -> None:
    from tipl.report import report

    _wrote(report(arguments.evals, arguments.out))


def _data_info(arguments: Namespace) -> None:
    from tipl.store import data_info

    show(data_info(arguments.store), arguments.json)


def _compact(arguments: Namespace) -> None:
    config = with_flags(CompactConfig(), vars(arguments))
    from tipl.compact import compact

    _wrote(compact(arguments.store, arguments.out, config))


def _random_walk(arguments: Namespace) -> None:
    from tipl.walks import random_walk

    sizes = {name: getattr(arguments, name) for name in ("trials", "snapshots", "dim", "drift", "seed", "anneal")}
    _wrote(random_walk(arguments.out, **sizes))


def _data_verify(arguments: Namespace) -> None:
    from tipl.store import data_verify

    facts = data_verify(arguments.store)
    show(facts, arguments.json)
    if not facts["ok"]:
        trials = ", ".join(map(str, sorted({part["trial"] for part in facts["damage"]})))
        raise TiplError(f"{arguments.store} is damaged in the trials {trials}: remove their folders and collect again")


def _wrote(path: Path, what: str = "") -> None:
    print(f"wrote {printable(path)}{printable(what)}")
