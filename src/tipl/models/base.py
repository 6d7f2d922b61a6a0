"""What every model over codes shares: settings, standardization, time, and the step fed back.

In: the codes of the last K snapshots and their numbers.  Out: the next code and, fed back, as many as are asked for.

Shapes: B batch, K context, D code, C width of the model.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tipl.config.presets import BasisName
from tipl.errors import TiplError
from tipl.models.files import SavedModel


@dataclass(frozen=True)
class TIPLConfig:
    """The shape of TIPL and the codes that it was made for. A rival's is that of the TIPL whose size it has.

    Raises:
        TiplError: the numbers do not describe a model.
    """

    dim: int
    """D, the size of a code."""
    context: int
    """K, the most codes that the model sees."""
    max_timestep: int
    """The last snapshot number with an embedding of its own; later ones share it."""
    num_layers: int = 3
    num_heads: int = 1
    width: int = 128
    dropout: float = 0.1
    absolute_time: bool = True
    """Add a learned embedding of the snapshot's number."""
    residual: bool = False
    """The head gives the step to the next code, to which the code seen is added; otherwise the next code itself."""
    basis: BasisName | None = None
    """The temporal SVD that made the codes; None for codes from elsewhere."""
    centered: bool = False
    """Whether that SVD was taken about the trial's first snapshot."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.context, self.num_layers, self.num_heads, self.width)
        fits = (
            min(sizes) >= 1
            and self.max_timestep >= 0
            and all(isinstance(number, int) for number in (*sizes, self.max_timestep))
            and self.width % self.num_heads == 0
            and 0 <= self.dropout < 1
        )
        if not fits:
            raise TiplError(f"These settings describe no model; check them: {asdict(self)}.")


class CodeModel(SavedModel, ABC):
    """At every position of a window, the code after it, from that position and those before it alone.

    Callers deal in raw codes. The model holds the mean and the standard deviation of the training codes (buffers, 0
    and 1 until they are set) and standardizes on the way in and back on the way out: a code that never moved, of
    deviation 0, is forecast as its mean. A subclass is a `network`.
    """

    settings = TIPLConfig
    config: TIPLConfig
    title: ClassVar[str]
    """Its name for people."""
    hidden: int
    """The width of its layers."""
    head: nn.Linear
    mean_D: Tensor
    std_D: Tensor

    def __init__(self, config: TIPLConfig) -> None:
        """Make a model of the shape that `config` says; weights are random."""
        super().__init__()
        self.config = config
        self.register_buffer("mean_D", torch.zeros(config.dim))
        self.register_buffer("std_D", torch.ones(config.dim))

    @abstractmethod
    def network(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """Return what `predict` returns before `residual` is heeded, [B, K, D].

        Args:
            codes_BKD: standardized, 0 where padded.
            timesteps_BK, valid_BK: as for `forward`; what is returned for padded positions is finite.
        """

    def standardize(self, codes: Tensor) -> Tensor:
        """Return (codes − mean) / std, [..., D]; 1 stands for a std of 0."""
        return (codes - self.mean_D) / torch.where(self.std_D > 0, self.std_D, 1.0)

    def predict(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """Return what `forward` does, [B, K, D], of standardized codes_BKD and as standardized codes.

        Args: timesteps_BK and valid_BK as for `forward`.
        """
        B, K, D = codes_BKD.shape
        assert self.config.dim == D and 1 <= K <= self.config.context, (codes_BKD.shape, self.config)
        assert timesteps_BK.shape == valid_BK.shape == (B, K), (timesteps_BK.shape, valid_BK.shape)
        # A padded code may hold anything, NaN too, which a zero weight would not stop.
        codes_BKD = codes_BKD.masked_fill(~valid_BK[..., None], 0.0)
        out_BKD = self.network(codes_BKD, timesteps_BK, valid_BK)
        return codes_BKD + out_BKD if self.config.residual else out_BKD

    def forward(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """Return the code after every position of a window of at most `config.context` positions.

        Args:
            codes_BKD: raw codes in order, the newest last; shorter histories are padded on the left.
            timesteps_BK: the snapshots' numbers t (int64). Below 0 counts as 0, above `max_timestep` as that: past
                the end of the longest training trial the model sees the last time that it has learned.
            valid_BK: False where a position is padding. What it holds has no influence on any valid position.

        Returns:
            [B, K, D]; position k holds the prediction of the code after k, from positions 0…k alone. At padded
            positions it is finite and means nothing.
        """
        return self.predict(self.standardize(codes_BKD), timesteps_BK, valid_BK) * self.std_D + self.mean_D

    @torch.no_grad()
    def rollout(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor, horizon: int) -> Tensor:
        """Return the next `horizon` codes, each predicted from the last `config.context`, its own predictions included.

        Args: codes_BKD, timesteps_BK and valid_BK as for `forward`, but of any length K ≥ 1, of which the last
            `config.context` positions are used.

        Returns:
            [B, horizon, D], without dropout and without gradient; the model's mode is left as it was.
        """
        B, K, D = codes_BKD.shape
        assert horizon >= 1, horizon
        ahead = torch.arange(1, horizon + 1, device=codes_BKD.device)
        codes = torch.cat([codes_BKD, codes_BKD.new_zeros(B, horizon, D)], 1)
        timesteps = torch.cat([timesteps_BK, timesteps_BK[:, -1:] + ahead], 1)
        valid = torch.cat([valid_BK, valid_BK.new_ones(B, horizon)], 1)
        was_training = self.training
        self.eval()
        try:
            for end in range(K, K + horizon):
                seen = slice(max(0, end - self.config.context), end)
                codes[:, end] = self(codes[:, seen], timesteps[:, seen], valid[:, seen])[:, -1]
        finally:
            self.train(was_training)
        return codes[:, K:]


class EmbeddedCodes(CodeModel):
    """A model that reads a code and its time as dropout(LayerNorm(E c_k + e_t)), as the Decision Transformer does."""

    def __init__(self, config: TIPLConfig) -> None:
        super().__init__(config)
        self.embed_code = nn.Linear(config.dim, config.width)
        self.embed_time = time_embedding(config)
        self.norm_embedding = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def embed(self, codes_BKD: Tensor, timesteps_BK: Tensor) -> Tensor:
        """Return what the network goes on with, [B, K, C], of codes_BKD at timesteps_BK; float32 under autocast too."""
        with torch.autocast(codes_BKD.device.type, enabled=False):
            x_BKC = self.embed_code(codes_BKD)
            if self.embed_time is not None:
                x_BKC = x_BKC + self.embed_time(timesteps_BK.clamp(0, self.config.max_timestep))
            return self.dropout(self.norm_embedding(x_BKC))


def time_embedding(config: TIPLConfig) -> nn.Embedding | None:
    """A row [C] for every snapshot's number up to the last that is learned from; None where time is not to count."""
    return nn.Embedding(config.max_timestep + 1, config.width) if config.absolute_time else None


class Dropout(nn.Module):
    """Each entry is 0 with the given probability and x / (1 - probability) otherwise; the identity in eval mode.

    It draws 16 bits an entry, four entries at once. `torch.nn.Dropout` draws a double an entry, which takes a tenth
    of a training step on CPU. The probability is thereby rounded to a multiple of 2^-16.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Return x [...] with random entries 0 and the others scaled up; outside of training x itself."""
        if not self.training or self.probability == 0:
            return x
        words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = draws >= round(self.probability * 2**16) - 2**15
        return x * keep.to(x.dtype).mul_(1 / (1 - self.probability))


def num_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
