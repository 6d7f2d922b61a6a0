"""Causal TIPL: from the inner products of a window's tokens to how much of each token a forecast takes.

In: `Windows`.  Out: coefficients over the tokens at every horizon, and how far off the forecast will be.

φ̃_{t+h} − φ_t = Σ_j a_{h,j} x_j, with a = (1 + gate_h) · linear_{i,h} + network_{h,j}: a linear autoregression, on
which the network leans more or less and to which it adds. The network is a Transformer over the tokens; a token is
described by its cosines with all tokens and its length, of its own tensor and of the whole policy. Nothing in the model
has a tensor's shape, so it is one for all policies. A tensor's size enters by its logarithm alone, as a fact of the
window: weights that never move, appended to a tensor, change the forecast of the others. The model is blind to scale
because all is in units of the window's steps, and odd, so that turning all signs turns the forecast.

Shapes: B windows, J tokens, H horizons, C width, F features of a token or facts of a window.
"""

import math
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tipl.errors import TiplError
from tipl.models.files import SavedModel
from tipl.representation.windows import HORIZONS, TOKENS, Windows

EPOCH_INDICES = 9
"""Epoch indices that are told apart: 0 … 7 (later ones count as 7), and unknown."""
_FACTS = EPOCH_INDICES + 4
_SHORTEST = 1e-6  # of a unit: a token whose length, in steps, is below this has not moved


@dataclass(frozen=True)
class CausalConfig:
    """The shape of a causal model.

    Raises:
        TiplError: the numbers do not describe a model.
    """

    num_layers: int = 2
    num_heads: int = 4
    width: int = 64
    tokens: int = TOKENS
    """J: those of the path, and behind them context tokens, where it takes any."""
    horizons: tuple[int, ...] = HORIZONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizons", tuple(self.horizons))
        fits = min(self.num_layers, self.num_heads, self.width) >= 1 and self.width % self.num_heads == 0
        if not fits or not TOKENS <= self.tokens <= 2 * TOKENS or self.horizons != HORIZONS:
            raise TiplError(f"These settings describe no causal model; check them: {asdict(self)}.")


class Features(NamedTuple):
    """`Windows` as the model reads them."""

    token_BJF: Tensor
    fact_BF: Tensor
    epoch_index_B: Tensor


class Outlook(NamedTuple):
    """What the model says of each window."""

    coefficients_BHJ: Tensor
    log_error_BH: Tensor
    """Logarithm of the expected squared error, as a share of h squared steps."""


def features(windows: Windows) -> Features:
    """Windows as the model reads them."""
    token_BJF = described(torch.from_numpy(windows.own), torch.tensor(windows.whole))  # which may be a broadcast
    return Features(token_BJF, *facts(windows))


def told_apart(windows: Windows) -> np.ndarray:
    """Return the windows' epoch indices [B] as the model tells them apart."""
    return np.where(windows.epoch_index < 0, EPOCH_INDICES - 1, np.minimum(windows.epoch_index, EPOCH_INDICES - 2))


def facts(windows: Windows) -> tuple[Tensor, Tensor]:
    """What the model is told of each window as a whole [B, F], and its epoch index [B]."""
    index = told_apart(windows)
    share = np.log(np.maximum(windows.share, 1e-12))
    straight = windows.own[:, :TOKENS, :TOKENS].sum(axis=(1, 2), dtype=np.float64)  # |φ_t − φ_{t−200}|², squared steps
    told = [np.log1p(windows.origin) / 8, np.log(windows.size) / 10, share / 4, np.log1p(np.maximum(straight, 0)) / 8]
    fact = np.concatenate([np.eye(EPOCH_INDICES)[index], np.stack(told, axis=1)], axis=1).astype(np.float32)
    return torch.from_numpy(fact), torch.from_numpy(index)


def described(own_BJJ: Tensor, whole_BJJ: Tensor) -> Tensor:
    """[B, J, F] of the tokens: their cosines and log lengths, in their own tensor and in the whole policy."""
    (cosines, lengths), (whole_cosines, whole_lengths) = _shape(own_BJJ), _shape(whole_BJJ)
    return torch.cat([cosines, whole_cosines, lengths, whole_lengths], dim=2)


def _shape(product_BJJ: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [B, J, J], zero where a token has not moved, and log lengths [B, J, 1] in steps, moderate numbers."""
    square_BJ1 = product_BJJ.diagonal(dim1=1, dim2=2)[..., None]
    moves_BJ1 = square_BJ1 > _SHORTEST**2
    length_BJ1 = torch.where(moves_BJ1, square_BJ1, 1.0).sqrt()
    cosines_BJJ = product_BJJ / (length_BJ1 * length_BJ1.mT) * (moves_BJ1 & moves_BJ1.mT)
    return cosines_BJJ, torch.where(moves_BJ1, length_BJ1.log(), -4.0) / 2


class CausalTIPL(SavedModel):
    """A Transformer over the tokens of a window, with a linear autoregression as its skip path."""

    kind = "causal"
    settings = CausalConfig
    config: CausalConfig
    title: ClassVar[str] = "TIPL, causal"

    def __init__(self, config: CausalConfig = CausalConfig()) -> None:
        """Make a model of the shape that `config` says, which forecasts no movement until it is trained."""
        super().__init__()
        self.config, width, horizons, tokens = config, config.width, len(config.horizons), config.tokens
        self.embed_token = nn.Linear(2 * tokens + 2, width)
        self.embed_fact = nn.Linear(_FACTS, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(_Block(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.to_coefficients = nn.Linear(width, horizons)
        self.to_gate = nn.Linear(width, horizons)
        self.to_log_error = nn.Linear(width, horizons)
        self.linear = nn.Parameter(torch.zeros(EPOCH_INDICES, horizons, tokens))
        for head in (self.to_coefficients, self.to_gate, self.to_log_error):  # begins as the linear autoregression
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, seen: Features) -> Outlook:
        """Return a weight for each token and horizon, and the error to expect, of what is `seen` of B windows."""
        x_BJC = self.embed_token(seen.token_BJF) + self.embed_fact(seen.fact_BF)[:, None] + self.position
        for block in self.blocks:
            x_BJC = block(x_BJC)
        x_BJC = self.norm(x_BJC)
        mean_BC = x_BJC.mean(dim=1)
        moves_BJ1 = seen.token_BJF[..., -2:-1] > -2.0  # of a token that has not moved nothing can be taken
        own_BHJ = (self.to_coefficients(x_BJC) * moves_BJ1).transpose(1, 2).float()
        # Indexing would add up its gradient in the order in which threads come: other last bits in every run.
        linear_BHJ = F.embedding(seen.epoch_index_B, self.linear.flatten(1)).view(-1, *self.linear.shape[1:])
        gate_BH1 = 1 + self.to_gate(mean_BC).float()[..., None]
        return Outlook(gate_BH1 * linear_BHJ + own_BHJ, self.to_log_error(mean_BC).float())


class _Block(nn.Module):
    """Attention among all tokens of a window, then an MLP; normalized before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BJC: Tensor) -> Tensor:
        B, J, C = x_BJC.shape
        qkv = self.to_qkv(self.norm_attention(x_BJC)).view(B, J, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Written out: torch's fused attention takes ten times as long backward, for so few tokens in bfloat16 on a CPU.
        seen_BNJJ = torch.softmax(q @ k.mT / math.sqrt(C // self.heads), dim=-1).to(v.dtype)
        mixed_BJC = (seen_BNJJ @ v).transpose(1, 2).reshape(B, J, C)
        x_BJC = x_BJC + self.from_heads(mixed_BJC)
        return x_BJC + self.down(F.gelu(self.up(self.norm_mlp(x_BJC))))
