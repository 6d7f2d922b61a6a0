"""The paper's two experiments, each in two sizes.

In: nothing.  Out: the settings of every stage that ``tipl reproduce`` runs.
"""

from dataclasses import dataclass, replace

from tipl.checks import checked_arguments
from tipl.config.presets import CollectConfig, EvaluateConfig, SVDConfig, TrainConfig
from tipl.errors import TiplError


@dataclass(frozen=True)
class Experiment:
    """Everything that ``tipl reproduce`` runs, stage by stage."""

    collect: CollectConfig
    svd: SVDConfig
    train: TrainConfig
    evaluate: EvaluateConfig


# The causal model that comes with the package is judged beside the paper's, so the seeds are none that it has seen.
_PENDULUM = CollectConfig(env_id="InvertedPendulum-v4", trials=50, seed=1001, total_steps=800_000, hidden_sizes=(8, 8))
_CHEETAH = CollectConfig(env_id="HalfCheetah-v4", trials=50, seed=1001, total_steps=2_000_000, hidden_sizes=(256, 256))
_QUICK_TRAIN = TrainConfig(steps=700, warmup_steps=100, learning_rate=1e-3, validate_every=100)

EXPERIMENTS: dict[str, dict[str, Experiment]] = {
    "inverted-pendulum": {
        "quick": Experiment(
            collect=replace(_PENDULUM, trials=16, total_steps=200_000),
            svd=SVDConfig(),
            train=_QUICK_TRAIN,
            evaluate=EvaluateConfig(return_origins=6, episodes=10),
        ),
        "paper": Experiment(_PENDULUM, SVDConfig(), TrainConfig(), EvaluateConfig()),
    },
    "half-cheetah": {
        "quick": Experiment(
            collect=replace(_CHEETAH, trials=6, total_steps=100_000, hidden_sizes=(64, 64)),
            svd=SVDConfig(),
            train=_QUICK_TRAIN,
            evaluate=EvaluateConfig(return_origins=4, episodes=5),
        ),
        "paper": Experiment(_CHEETAH, SVDConfig(), TrainConfig(), EvaluateConfig()),
    },
}


@checked_arguments
def experiment(name: str, preset: str) -> Experiment:
    """Return the settings of one of the paper's experiments in one of its sizes.

    Args:
        name, preset: as `reproduce` takes them.

    Raises:
        TiplError: there is no such experiment or preset.
    """
    if name not in EXPERIMENTS:
        raise TiplError(f"Unknown experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}.")
    presets = EXPERIMENTS[name]
    if preset not in presets:
        raise TiplError(f"Unknown preset {preset!r}; choose one of {', '.join(presets)}.")
    return presets[preset]
