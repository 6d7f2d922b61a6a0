"""Every setting and its default.

In: nothing.  Out: frozen dataclasses that the functions of the package take and the command line is made from.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from tipl.errors import TiplError

Backend = Literal["auto", "envpool", "gymnasium"]
Activation = Literal["tanh", "relu", "elu"]
BasisName = Literal["full", "prefix", "window", "pooled"]
ModelName = Literal["paper", "gru", "mlp", "causal"]
Device = Literal["cpu", "cuda"]
ForecasterName = Literal["line", "lookahead", "average", "noise", "autoregression", "causal"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TiplError(message)


@dataclass(frozen=True)
class PPOConfig:
    """CleanRL's ``ppo_continuous_action`` defaults, one environment a trial."""

    learning_rate: float = 3e-4
    anneal_lr: bool = True
    """Linear, from `learning_rate` at the first iteration towards 0 after the last."""
    num_envs: int = 1
    """Copies of the environment in one trial."""
    num_steps: int = 2048
    """Steps of each copy in one iteration."""
    normalize: bool = True
    """Normalize observations and rewards by running moments and clip them to ±10."""
    num_minibatches: int = 32
    update_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    clip_vloss: bool = True
    norm_adv: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    adam_eps: float = 1e-5

    @property
    def batch_size(self) -> int:
        """Environment steps of one iteration, of all copies together."""
        return self.num_envs * self.num_steps


@dataclass(frozen=True)
class DiscretePPOConfig(PPOConfig):
    """CleanRL's ``ppo`` defaults: four environments a trial, nothing normalized."""

    learning_rate: float = 2.5e-4
    num_envs: int = 4
    num_steps: int = 128
    normalize: bool = False
    num_minibatches: int = 4
    update_epochs: int = 4
    ent_coef: float = 0.01


@dataclass(frozen=True)
class CollectConfig:
    """What makes a data set of trials; with its seed, all that makes one trial. For continuous actions."""

    env_id: str = "InvertedPendulum-v4"
    trials: int = 20
    """Number of independent runs."""
    seed: int = 1
    """Seed of the first trial; the others count up from it."""
    total_steps: int = 200_000
    """Environment steps of one trial; whole iterations of them are run, as in CleanRL."""
    hidden_sizes: tuple[int, ...] = (8, 8)
    """Widths of the hidden layers, the same for actor and critic."""
    activation: Activation = "tanh"
    """Of the hidden layers."""
    snapshot_every_epochs: int = 2
    """Update epochs between two snapshots. 2 is inferred from the paper: 800k steps / 2k snapshots = 400 steps."""
    backend: Backend = "auto"
    """auto: EnvPool where it has the environment, Gymnasium otherwise."""
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        _require(self.trials >= 1, f"--trials is {self.trials}; give at least 1.")
        _require(self.seed >= 0, f"--seed is {self.seed}; give 0 or more.")
        _require(
            self.ppo.num_envs >= 1 and self.ppo.num_steps >= 1,
            f"--ppo.num-envs is {self.ppo.num_envs} and --ppo.num-steps {self.ppo.num_steps}; give at least 1.",
        )
        _require(
            self.total_steps >= self.ppo.batch_size,
            f"--total-steps is {self.total_steps}; give at least one iteration, {self.ppo.batch_size} steps.",
        )
        _require(
            len(self.hidden_sizes) >= 1 and all(width >= 1 for width in self.hidden_sizes),
            f"--hidden-sizes is {self.hidden_sizes}; give one or more widths of at least 1.",
        )
        _require(
            self.activation in get_args(Activation),
            f"--activation is {self.activation}; give one of {', '.join(get_args(Activation))}.",
        )
        _require(
            1 <= self.snapshot_every_epochs <= self.ppo.update_epochs
            and self.ppo.update_epochs % self.snapshot_every_epochs == 0,
            f"--snapshot-every-epochs is {self.snapshot_every_epochs}; give a divisor of {self.ppo.update_epochs}.",
        )
        _require(
            self.ppo.batch_size % self.ppo.num_minibatches == 0,
            f"{self.ppo.batch_size} steps do not split into {self.ppo.num_minibatches} equal minibatches.",
        )

    @property
    def num_iterations(self) -> int:
        return self.total_steps // self.ppo.batch_size

    @property
    def snapshots_per_iteration(self) -> int:
        return self.ppo.update_epochs // self.snapshot_every_epochs

    @property
    def num_snapshots(self) -> int:
        """T, with the initialization as snapshot 0."""
        return 1 + self.num_iterations * self.snapshots_per_iteration

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.trials)


@dataclass(frozen=True)
class DiscreteCollectConfig(CollectConfig):
    """The same for discrete actions, with CleanRL's ``ppo`` defaults."""

    env_id: str = "CartPole-v1"
    total_steps: int = 500_000
    hidden_sizes: tuple[int, ...] = (64, 64)
    ppo: PPOConfig = field(default_factory=DiscretePPOConfig)


@dataclass(frozen=True)
class CompactConfig:
    """How much a compact store may lose."""

    error: float = 0.02
    """The most that a snapshot may be off, root mean square, in units of the mean step between snapshots."""

    def __post_init__(self) -> None:
        _require(0 < self.error <= 1, f"--error is {self.error}; give more than 0 and at most 1.")


@dataclass(frozen=True)
class SVDConfig:
    """The temporal SVD that turns snapshots into codes."""

    basis: BasisName = "full"
    """full: SVD of the whole trial, as the paper has it; it has seen the future of every origin."""
    dim: int = 32
    """d, the size of a code."""
    centered: bool = False
    """Subtract the trial's first snapshot before the SVD; the paper does not."""
    window: int = 50
    """K of the basis window; of prefix, how many codes of an origin are kept. Unused by the others."""
    by_tensor: bool = False
    """A basis for each tensor of the policy, of min(d, its weights) directions; a code is theirs end to end."""

    def __post_init__(self) -> None:
        _require(self.dim >= 1, f"--dim is {self.dim}; give at least 1.")
        _require(self.window >= 1, f"--window is {self.window}; give at least 1.")


@dataclass(frozen=True)
class TrainConfig:
    """TIPL as the paper has it; where the paper is silent, the Decision Transformer's defaults."""

    model: ModelName = "paper"
    """paper: TIPL. gru, mlp: rivals; what `width` and `num_heads` say is then the TIPL whose size they have.
    causal: TIPL over a window's inner products, for any policy."""
    context: int = 20
    """K, how many codes the model sees. The causal model sees 201 snapshots."""
    num_layers: int = 3
    num_heads: int = 1
    width: int = 128
    dropout: float = 0.1
    standardize: bool = True
    """Scale every code dimension by its mean and standard deviation over the training trials."""
    absolute_time: bool = True
    """A learned embedding of the snapshot's number t."""
    residual: bool = False
    """Let the network give the step to the next code; the paper's gives the code itself."""
    steps: int = 500_000
    """Optimizer steps. The paper: 50 iterations of 10k batches."""
    batch_size: int = 64
    windows: int = 5000
    """Origins of each store, about, that the causal model learns from, drawn once; each gives a window for every
    tensor."""
    noise: float = 0.0
    """Share of the causal model's windows to whose steps noise is added."""
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 10_000
    cosine: bool = False
    """Let the learning rate fall to 0 along half a cosine."""
    max_grad_norm: float = 0.25
    validate_every: int = 10_000
    """Steps between two validations, each of which is also a checkpoint."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.noise < 1, f"--noise is {self.noise}; give 0 <= noise < 1.")
        _require(self.windows >= 1, f"--windows is {self.windows}; give at least 1.")
        _require(self.context >= 1, f"--context is {self.context}; give at least 1.")
        _require(self.width % self.num_heads == 0, f"--width {self.width} does not split into {self.num_heads} heads.")
        _require(self.steps >= 1, f"--steps is {self.steps}; give at least 1.")
        _require(0 <= self.dropout < 1, f"--dropout is {self.dropout}; give 0 <= dropout < 1.")


@dataclass(frozen=True)
class CausalTrainConfig(TrainConfig):
    """The causal model's settings where they are others. Those that are about codes have no effect on it."""

    model: ModelName = "causal"
    num_layers: int = 2
    num_heads: int = 4
    width: int = 64
    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    cosine: bool = True
    validate_every: int = 250


@dataclass(frozen=True)
class EvaluateConfig:
    """How forecasts are judged on the test trials."""

    horizons: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50, 100)
    """Snapshots ahead at which weights are compared."""
    origins: int = 64
    """Origins a test trial for the weight measures: so many evenly over time, and as many over the return gained."""
    return_horizons: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    """Snapshots ahead at which policies are run; a subset of `horizons`."""
    return_origins: int = 16
    """Origins a test trial for the return measures, half of them by time, half by return gained."""
    return_forecasters: tuple[str, ...] = ("persistence", "damped-line", "autoregression")
    """Baselines whose policies are run; those of models always are."""
    stretch: tuple[float, ...] = ()
    """Also judge the forecasters whose policies are run with their displacements times these."""
    adapt: bool = False
    """Also judge every model over weights, the autoregression and persistence, adapted in the run by how their
    forecasts came out."""
    episodes: int = 20
    """Episodes that estimate the return of one policy."""
    oracle_normalizer: bool = True
    """Also run forecasts, at the last return horizon, under the observation normalizer that the true policy has there:
    an oracle, for it is not known at the origin."""
    sampled_actions: bool = True
    """Also run true and predicted policies, at the last return horizon, with sampled instead of mean actions."""
    spectrum_trials: int = 3
    """Test trials whose energy spectrum is measured, over learning, by tensor and beside random walks."""
    seen: bool = False
    """Judge on training trials instead, as many as there are test trials: what is made of what was learned from."""
    seed: int = 0
    """Seed of the origins, the episodes, the random baseline, the bootstrap and the walks beside the spectra."""

    def __post_init__(self) -> None:
        _require(
            min(self.horizons, default=0) >= 1 and min(self.return_horizons, default=0) >= 1,
            "--horizons and --return-horizons take snapshots ahead, at least 1.",
        )
        unknown = sorted(set(self.return_horizons) - set(self.horizons))
        _require(not unknown, f"--return-horizons has {unknown}, which --horizons has not; add them there.")
        _require(
            min(self.origins, self.return_origins, self.episodes) >= 1,
            "--origins, --return-origins and --episodes take at least 1.",
        )
        _require(
            all(0 < factor < math.inf and factor != 1 for factor in self.stretch),
            "--stretch takes factors above 0 other than 1.",
        )
        _require(self.spectrum_trials >= 0, f"--spectrum-trials is {self.spectrum_trials}; give 0 or more.")


@dataclass(frozen=True)
class JumpConfig:
    """When and how far a live run jumps to forecast weights. `results/accelerate` has what they are worth."""

    every: int = 1
    """Iterations between two proposals; doubled, up to 16 times, by every jump that is taken back, halved again by one
    that is not."""
    horizon: int = 4
    """Iterations ahead of the proposal."""
    max_kl: float = 0.01
    """Most that a jump may change the policy: mean KL(π_t ‖ π̃) over the batch, in nats."""
    max_change: float = 1e9
    """Most that an update and the jump after it may change the policy together: mean KL(π_batch ‖ π̃) from the policy
    that made the batch, in nats; the default never binds."""
    surrogate: bool = True
    """Also refuse a jump that lowers the surrogate objective, the mean of ratio × advantage, on the batch."""
    full_trust: float = 0.2
    """Trust from which a forecast is believed in full, and below which in proportion; 0: always in full."""
    memory: float = 0.7
    """How much of the evidence about the forecaster is kept from one iteration to the next."""
    silent_below: float = 0.1
    """Trust below which nothing is proposed."""
    hindsight: bool = False
    """Take a jump back if the next batch, which the policy after it has made, has a higher surrogate objective for the
    policy from before."""
    fall: float = 2.0
    """Standard errors by which the return has to fall after a jump for it to be taken back; 0: never."""
    log_std: bool = False
    """Let the log standard deviations jump too."""
    layers: Literal["all", "body", "head"] = "all"
    """Which layers of the network jump: all, all but the last one, or the last one alone."""
    directions: int = 0
    """Of a forecast, jump only by its part in so many first principal directions of the snapshots that the forecaster
    sees; 0: by all of it."""
    reset_momentum: bool = False
    """Zero Adam's first moments of the policy after a jump."""

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"--every is {self.every}; give at least 1.")
        _require(self.horizon >= 1, f"--horizon is {self.horizon}; give at least 1.")
        _require(self.max_change > 0, f"--max-change is {self.max_change}; give more than 0.")
        _require(self.max_kl > 0, f"--max-kl is {self.max_kl}; give more than 0.")
        _require(0 <= self.full_trust <= 1, f"--full-trust is {self.full_trust}; give 0 to 1.")
        _require(0 <= self.memory < 1, f"--memory is {self.memory}; give 0 <= memory < 1.")
        _require(self.silent_below >= 0, f"--silent-below is {self.silent_below}; give 0 or more.")
        _require(self.directions >= 0, f"--directions is {self.directions}; give 0 or more.")
        _require(self.fall >= 0, f"--fall is {self.fall}; give 0 or more.")


_UNGUARDED = JumpConfig(full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0)
JUMPS = {
    "line": JumpConfig(),
    "noise": JumpConfig(),
    "lookahead": replace(_UNGUARDED, every=5),  # as it is known, and so is the average
    "average": _UNGUARDED,
    "autoregression": JumpConfig(horizon=20, max_kl=0.02, max_change=0.02),
    "causal": JumpConfig(horizon=20, max_change=0.02, hindsight=True),
}
"""How to jump with each `ForecasterName`, as `results/accelerate` has chosen."""


def jumps_of(forecaster: str) -> JumpConfig:
    """How to jump with a forecaster of this name, or with a causal model in this folder."""
    return JUMPS.get(forecaster, JUMPS["causal"])
