"""Every setting and its default.

In: nothing.  Out: frozen dataclasses that the functions of the package take and the command line is made from.

A field's annotation says which values it takes (checks.py); `__post_init__` adds what hangs on several fields.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tipl.checks import (
    Count,
    NotNegative,
    Part,
    Positive,
    Share,
    Whole,
    Within,
    check_settings,
    require,
)
from tipl.errors import TiplError

MOST_WEIGHTS = 100_000_000
"""Of a network that is collected: some copies of them are held in memory."""

Backend = Literal["auto", "envpool", "gymnasium"]
Activation = Literal["tanh", "relu", "elu"]
BasisName = Literal["full", "prefix", "window", "pooled"]
ModelName = Literal["paper", "gru", "mlp", "causal"]
LossName = Literal["weights", "standardized", "codes"]
Precision = Literal["float32", "bfloat16", "fast"]
Device = Literal["cpu", "cuda"]
ForecasterName = Literal["line", "lookahead", "average", "noise", "autoregression", "causal", "zoo", "context"]


@dataclass(frozen=True)
class PPOConfig:
    """CleanRL's ``ppo_continuous_action`` defaults, one environment a trial."""

    learning_rate: NotNegative = 3e-4
    anneal_lr: bool = True
    """Linear, from `learning_rate` at the first iteration towards 0 after the last."""
    num_envs: Count = 1
    """Copies of the environment in one trial."""
    num_steps: Count = 2048
    """Steps of each copy in one iteration."""
    normalize: bool = True
    """Normalize observations and rewards by running moments and clip them to ±10."""
    num_minibatches: Count = 32
    update_epochs: Count = 10
    gamma: Share = 0.99
    gae_lambda: Share = 0.95
    clip_coef: NotNegative = 0.2
    clip_vloss: bool = True
    norm_adv: bool = True
    ent_coef: float = 0.0
    vf_coef: NotNegative = 0.5
    max_grad_norm: Positive = 0.5
    adam_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_settings(self, "--ppo.")

    @property
    def batch_size(self) -> int:
        """Environment steps of one iteration, of all copies together."""
        return self.num_envs * self.num_steps


@dataclass(frozen=True)
class DiscretePPOConfig(PPOConfig):
    """CleanRL's ``ppo`` defaults: four environments a trial, nothing normalized."""

    learning_rate: NotNegative = 2.5e-4
    num_envs: Count = 4
    num_steps: Count = 128
    normalize: bool = False
    num_minibatches: Count = 4
    update_epochs: Count = 4
    ent_coef: float = 0.01


def require_json(env_kwargs: Mapping[str, Any]) -> None:
    """Keyword arguments go into the trial's record, from which its policies are run again."""
    try:
        json.dumps(env_kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TiplError(
            f"--env-kwargs does not go into JSON ({error}); give numbers, text, lists and objects."
        ) from error


@dataclass(frozen=True)
class CollectConfig:
    """What makes a data set of trials; with its seed, all that makes one trial. For continuous actions.

    What `ppo` says is CleanRL's. The environment, its steps and the two layers of 8 are those of the paper's smaller
    experiment; CleanRL's are HalfCheetah-v4, 1,000,000 and two layers of 64.
    """

    env_id: str = "InvertedPendulum-v4"
    env_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of the environment, K=V or a JSON object; max_episode_steps is one."""
    trials: Count = 20
    """Number of independent runs."""
    seed: Whole = 1
    """Seed of the first trial; the others count up from it."""
    total_steps: Count = 200_000
    """Environment steps of one trial; whole iterations of them are run, as in CleanRL. Trials that have fewer, finished
    ones too, go on to these where the learning rate is not annealed."""
    hidden_sizes: tuple[Count, ...] = (8, 8)
    """Widths of the hidden layers, the same for actor and critic."""
    activation: Activation = "tanh"
    """Of the hidden layers."""
    snapshot_every_epochs: Count = 2
    """Update epochs between two snapshots. 2 is inferred from the paper: 800k steps / 2k snapshots = 400 steps."""
    backend: Backend = "auto"
    """auto: EnvPool where it has the environment, Gymnasium otherwise and where `env_kwargs` are given."""
    context: bool = False
    """Also keep context tokens: after every iteration five vectors as long as the weights, which say where the last
    rollouts would move them. Collecting is slower, and the store has two to four times the bytes."""
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self.total_steps >= self.ppo.batch_size,
            f"--total-steps is {self.total_steps}; give at least one iteration, {self.ppo.batch_size} steps.",
        )
        require_json(self.env_kwargs)
        require(len(self.hidden_sizes) >= 1, "--hidden-sizes is empty; give one or more widths.")
        weights = sum(a * b for a, b in itertools.pairwise((1, *self.hidden_sizes, 1)))
        require(
            weights <= MOST_WEIGHTS,
            f"--hidden-sizes gives networks of {weights:,} weights or more; up to {MOST_WEIGHTS:,} can be collected.",
        )
        require(
            self.ppo.update_epochs % self.snapshot_every_epochs == 0,
            f"--snapshot-every-epochs is {self.snapshot_every_epochs}; give a divisor of {self.ppo.update_epochs}.",
        )
        require(
            self.ppo.batch_size % self.ppo.num_minibatches == 0,
            f"{self.ppo.batch_size} steps do not split into {self.ppo.num_minibatches} equal minibatches; give "
            "--ppo.num-minibatches a divisor of that.",
        )

    @property
    def num_iterations(self) -> int:
        """Whole iterations of PPO in `total_steps`."""
        return self.total_steps // self.ppo.batch_size

    @property
    def snapshots_per_iteration(self) -> int:
        """Snapshots that one iteration of PPO gives."""
        return self.ppo.update_epochs // self.snapshot_every_epochs

    @property
    def num_snapshots(self) -> int:
        """T, with the initialization as snapshot 0."""
        return 1 + self.num_iterations * self.snapshots_per_iteration

    @property
    def seeds(self) -> range:
        """The seed of each trial."""
        return range(self.seed, self.seed + self.trials)


@dataclass(frozen=True)
class DiscreteCollectConfig(CollectConfig):
    """The same for discrete actions, with CleanRL's ``ppo`` defaults, its environment, steps and layers too."""

    env_id: str = "CartPole-v1"
    total_steps: Count = 500_000
    hidden_sizes: tuple[Count, ...] = (64, 64)
    ppo: PPOConfig = field(default_factory=DiscretePPOConfig)


@dataclass(frozen=True)
class CompactConfig:
    """How much a compact store may lose."""

    error: Annotated[float, Within(0, 1, open=("least",))] = 0.02
    """The most that a snapshot may be off, root mean square, in units of the mean step between snapshots."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class SVDConfig:
    """The temporal SVD that turns snapshots into codes."""

    basis: BasisName = "full"
    """full: SVD of the whole trial, as the paper has it; it has seen the future of every origin."""
    dim: Count = 32
    """d, the size of a code."""
    centered: bool = False
    """Subtract the trial's first snapshot before the SVD; the paper does not."""
    window: Count = 50
    """K of the basis window; of prefix, how many codes of an origin are kept."""
    by_tensor: bool = False
    """A full or pooled basis for each tensor of the policy, of min(d, its weights) directions; a code is theirs end to
    end."""

    def __post_init__(self) -> None:
        check_settings(self)
        require(
            self.basis in ("window", "prefix") or self.window == type(self).window,
            f"--window has no effect on the basis {self.basis}; leave it out, or fit window or prefix.",
        )
        require(
            not self.by_tensor or self.basis in ("full", "pooled"),
            f"--by-tensor has no effect on the basis {self.basis}; leave it out, or fit full or pooled.",
        )


@dataclass(frozen=True)
class TrainConfig:
    """TIPL as the paper has it; where the paper is silent, the Decision Transformer's defaults."""

    model: ModelName = "paper"
    """paper: TIPL. gru, mlp: rivals; what `width` and `num_heads` say is then the TIPL whose size they have.
    causal: TIPL over a window's inner products, for any policy."""
    context: Count = 20
    """K, how many codes the model sees. The causal model sees 201 snapshots."""
    num_layers: Count = 3
    num_heads: Count = 1
    width: Count = 128
    dropout: Part = 0.1
    standardize: bool = True
    """Give the network codes scaled by their mean and standard deviation over the training trials. What the loss weighs
    is another setting, `loss`."""
    loss: LossName = "weights"
    """Whose squared error is minimized: that of weights (the paper's Equation 1), of standardized codes (every
    dimension alike) or of codes as they are."""
    absolute_time: bool = True
    """A learned embedding of the snapshot's number t."""
    residual: bool = False
    """Let the network give the step to the next code; the paper's gives the code itself."""
    steps: Count = 500_000
    """Optimizer steps. The paper: 50 iterations of 10k batches."""
    batch_size: Count = 64
    windows: Count = 5000
    """Origins of each store, about, that the causal model learns from, drawn once; each gives a window a tensor."""
    noise: Part = 0.0
    """Share of the causal model's windows to whose steps noise is added."""
    tokens: bool = False
    """Let the causal model see the context tokens of its stores, too (`tipl collect --context`)."""
    learning_rate: NotNegative = 1e-4
    weight_decay: NotNegative = 1e-4
    warmup_steps: Whole = 10_000
    cosine: bool = False
    """Let the learning rate fall to 0 along half a cosine."""
    max_grad_norm: Positive = 0.25
    precision: Precision = "float32"
    """Of the products in the network: float32, as the Decision Transformer has it, bfloat16, or fast: bfloat16 on a GPU
    and where the processor multiplies it itself, else float32."""
    validate_every: Count = 10_000
    """Steps between two validations, each of which is also a checkpoint."""
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_settings(self)
        require(self.width % self.num_heads == 0, f"--width {self.width} does not split into {self.num_heads} heads.")
        for name in _WITHOUT_EFFECT["causal" if self.model == "causal" else "codes"]:
            require(
                getattr(self, name) == getattr(TrainConfig, name),
                f"--{name.replace('_', '-')} has no effect on --model {self.model}; leave it out.",
            )
        require(
            self.model != "gru" or self.precision != "bfloat16",
            "--precision bfloat16 has no effect on a GRU, which carries its state in float32; leave it out.",
        )


_WITHOUT_EFFECT = {
    "causal": ("context", "dropout", "standardize", "loss", "absolute_time", "residual"),
    "codes": ("windows", "noise", "tokens"),
}
"""Settings that a kind of model does not heed."""


@dataclass(frozen=True)
class CausalTrainConfig(TrainConfig):
    """The causal model's settings where they are others. Those that are about codes it does not take."""

    model: ModelName = "causal"
    num_layers: Count = 2
    num_heads: Count = 4
    width: Count = 64
    steps: Count = 4000
    batch_size: Count = 256
    learning_rate: NotNegative = 1e-3
    weight_decay: NotNegative = 1e-2
    warmup_steps: Whole = 100
    cosine: bool = True
    precision: Precision = "fast"
    validate_every: Count = 250


@dataclass(frozen=True)
class EvaluateConfig:
    """How forecasts are judged on the test trials."""

    horizons: tuple[Count, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50, 100)
    """Snapshots ahead at which weights are compared."""
    origins: Count = 64
    """Origins a test trial for the weight measures: so many evenly over time, and as many over the return gained."""
    return_horizons: tuple[Count, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    """Snapshots ahead at which policies are run; of the default those that are in `horizons`."""
    return_origins: Count = 16
    """Origins a test trial for the return measures, half of them by time, half by return gained."""
    return_forecasters: tuple[str, ...] = ("persistence", "damped-line", "autoregression")
    """Baselines whose policies are run; those of models always are."""
    stretch: tuple[Positive, ...] = ()
    """Also judge the forecasters whose policies are run with their displacements times these."""
    adapt: bool = False
    """Also judge every model over weights, the autoregression and persistence, adapted by how they came out."""
    episodes: Count = 20
    """Episodes that estimate the return of one policy."""
    oracle_normalizer: bool = True
    """Also run forecasts, at the last return horizon, under the true policy's observation normalizer: an oracle."""
    sampled_actions: bool = True
    """Also run true and predicted policies, at the last return horizon, with sampled instead of mean actions."""
    spectrum_trials: Whole = 3
    """Test trials whose energy spectrum is measured, over learning, by tensor and beside random walks."""
    seen: bool = False
    """Judge on training trials instead, as many as there are test trials: what is made of what was learned from."""
    all: bool = False
    """Judge on every trial of the store, which no model may know; baselines with a fit need other stores (--fit)."""
    seed: Whole = 0
    """Seed of the origins, the episodes, the random baseline, the bootstrap and the walks beside the spectra."""

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("horizons", "return_horizons"):
            values = getattr(self, name)
            require(len(values) >= 1, f"--{name.replace('_', '-')} is empty; give one or more.")
            twice = next((value for value in values if values.count(value) > 1), None)
            require(twice is None, f"--{name.replace('_', '-')} has {twice} twice; give it once.")
        require(1 not in self.stretch, "--stretch has 1, which changes nothing; leave it out.")
