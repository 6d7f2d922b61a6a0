"""Rivals of TIPL's size that see the same codes, to tell what the Transformer itself is worth.

In: the codes of the last K snapshots and their numbers.  Out: the next code.

Both have the depth, the dropout and the learned time of the TIPL with the same settings. The width of their layers is
no setting: it is the one with which they have as many parameters as that TIPL.

Shapes: B batch, K context, D code, C width of the embedding, W width of the layers.
"""

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tipl.models.base import CodeModel, Dropout, EmbeddedCodes, TIPLConfig, num_parameters, time_embedding
from tipl.models.transformer import TIPL


class GRU(EmbeddedCodes):
    """Gated recurrent units (Cho et al. 2014) on the embedding that TIPL has, from h = 0 at the first code it is given.

    Dropout lies on the embedding and on the output of every layer; a linear head gives the next code.

    config: its shape; hidden: the width, by default that of as many parameters as TIPL has.
    """

    kind, title = "gru", "GRU"

    def __init__(self, config: TIPLConfig, hidden: int | None = None) -> None:
        super().__init__(config)
        self.hidden = hidden or width_of_equal_size(config, lambda width: GRU(config, width))
        between = config.dropout if config.num_layers > 1 else 0.0  # torch's has none after its last layer
        self.layers = nn.GRU(config.width, self.hidden, config.num_layers, batch_first=True, dropout=between)
        self.head = nn.Linear(self.hidden, config.dim)
        if self.embed_time is not None:
            nn.init.normal_(self.embed_time.weight, std=0.02)

    def network(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        # What is padded goes from the left to the right, where it comes too late to be seen, and back.
        K = codes_BKD.shape[1]
        padded_B1 = (~valid_BK).sum(1, keepdim=True)
        place_BK = torch.arange(K, device=codes_BKD.device)
        to_left_BK, back_BK = (place_BK + padded_B1) % K, (place_BK - padded_B1) % K
        x_BKC = _rows(self.embed(codes_BKD, timesteps_BK), to_left_BK)
        with torch.autocast(codes_BKD.device.type, enabled=False):  # h is carried in float32
            h_BKW, _ = self.layers(x_BKC)
            return self.head(self.dropout(_rows(h_BKW, back_BK)))


class MLP(CodeModel):
    """ReLU layers on the last K codes laid end to end, each with a flag that says whether it is one, and on e_t.

    Every position is predicted from the K positions that end there, so a window trains it as often as it trains TIPL.

    config, hidden: as of `GRU`.
    """

    kind, title = "mlp", "MLP"

    def __init__(self, config: TIPLConfig, hidden: int | None = None) -> None:
        super().__init__(config)
        self.hidden = hidden or width_of_equal_size(config, lambda width: MLP(config, width))
        self.embed_time = time_embedding(config)
        size = config.context * (config.dim + 1) + (0 if self.embed_time is None else config.width)
        layers: list[nn.Module] = []
        for _ in range(config.num_layers):
            layers += [nn.Linear(size, self.hidden), nn.ReLU(inplace=True), Dropout(config.dropout)]
            size = self.hidden
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(size, config.dim)
        if self.embed_time is not None:
            nn.init.normal_(self.embed_time.weight, std=0.02)

    def network(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        B, _, D = codes_BKD.shape
        context = self.config.context
        flagged_BKD = torch.cat([codes_BKD, valid_BK[..., None].to(codes_BKD.dtype)], 2)
        earlier_BKD = flagged_BKD.new_zeros(B, context - 1, D + 1)
        x_BKC = torch.cat([earlier_BKD, flagged_BKD], 1).unfold(1, context, 1).flatten(2)
        if self.embed_time is not None:
            x_BKC = torch.cat([x_BKC, self.embed_time(timesteps_BK.clamp(0, self.config.max_timestep))], 2)
        x_BKC = self.layers(x_BKC)
        with torch.autocast(codes_BKD.device.type, enabled=False):
            return self.head(x_BKC.float())


def width_of_equal_size(config: TIPLConfig, rival: Callable[[int], nn.Module]) -> int:
    """The width at which a rival's number of parameters is nearest to that of the TIPL with this config."""
    with torch.device("meta"):  # shapes alone
        size = num_parameters(TIPL(config))

        def surplus(width: int) -> int:
            return num_parameters(rival(width)) - size

        enough = 1 + bisect_left(range(1, size), 0, key=surplus)
        return min(max(1, enough - 1), enough, key=lambda width: abs(surplus(width)))


def _rows(x_BKC: Tensor, index_BK: Tensor) -> Tensor:
    """Row index_BK[b, k] of x_BKC[b] at [b, k]."""
    return x_BKC.gather(1, index_BK[..., None].expand(-1, -1, x_BKC.shape[2]))
