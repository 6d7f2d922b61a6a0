"""TIPL as the paper has it (arXiv 2503.04074): a small causal Transformer that predicts the next code of a trial.

In: the codes of the last K snapshots and their numbers.  Out: the next code.

Shapes: B batch, K context, D code, C width of the model, A attention heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tipl.models.base import Dropout, EmbeddedCodes, TIPLConfig


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √(C/A) + mask) v, with dropout on the attention weights.

    Of C = `width` channels in A = `num_heads` heads.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BKC: Tensor, mask_B1KK: Tensor) -> Tensor:
        """Return [B, K, C] of x_BKC; `mask_B1KK` is 0 where row (query) may see column (key), −inf where it may not."""
        qkv_BK3AC = self.qkv(x_BKC).unflatten(-1, (3, self.num_heads, -1))
        q_BAKC, k_BAKC, v_BAKC = qkv_BK3AC.permute(2, 0, 3, 1, 4)
        seen_BAKC = functional.scaled_dot_product_attention(
            q_BAKC, k_BAKC, v_BAKC, attn_mask=mask_B1KK, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(seen_BAKC.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a ReLU network four times as wide, each added to its own LayerNorm-ed input (pre-LN)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(inplace=True), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x_BKC: Tensor, mask_B1KK: Tensor) -> Tensor:
        x_BKC = x_BKC + self.dropout(self.attention(self.norm_attention(x_BKC), mask_B1KK))
        return x_BKC + self.dropout(self.mlp(self.norm_mlp(x_BKC)))


class TIPL(EmbeddedCodes):
    """A GPT over codes: at every position of a window it predicts the code after it.

    x_k = dropout(LayerNorm(E c_k + e_t)), causal pre-LN blocks, LayerNorm, and a linear head onto the next code.
    The paper leaves the rest open; it is as in the Decision Transformer, on which the paper builds: ReLU, dropout on
    the embedding, the attention weights and both branches, and no embedding of the place in the window.

    config: its shape, `TIPLConfig`; weights are random.
    """

    kind, title = "paper", "TIPL"

    def __init__(self, config: TIPLConfig) -> None:
        super().__init__(config)
        self.hidden = config.width
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.dropout) for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.dim)
        self._initialize()

    def _initialize(self) -> None:
        """GPT-2's: N(0, 0.02²), and 0.02 / √(2 layers) where a branch joins the residual stream.

        The code's own embedding and the head keep torch's default, as in the Decision Transformer.
        """
        if self.embed_time is not None:
            nn.init.normal_(self.embed_time.weight, std=0.02)
        for block in self.blocks:
            for name, weight in block.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(weight)
                elif weight.ndim == 2:
                    joins = name in ("attention.out.weight", "mlp.2.weight")
                    nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.config.num_layers) if joins else 0.02)

    def network(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """Return the head's output [B, K, D]; the arguments are those of `CodeModel.network`: codes_BKD, timesteps_BK,
        valid_BK.

        Under autocast only the blocks run in low precision: a step between two codes is small beside the codes, so
        what is read, written and carried along the residual stream stays float32.
        """
        B, K, _ = codes_BKD.shape
        device = codes_BKD.device
        x_BKC = self.embed(codes_BKD, timesteps_BK)
        past_KK = torch.ones(K, K, dtype=torch.bool, device=device).tril()
        # A padded position sees itself alone: every row of the softmax has an entry, and no other row sees it.
        itself_KK = torch.eye(K, dtype=torch.bool, device=device)
        seen_BKK = past_KK & valid_BK[:, None, :] | itself_KK
        mask_B1KK = torch.zeros(B, 1, K, K, device=device).masked_fill_(~seen_BKK[:, None], -torch.inf)
        for block in self.blocks:
            x_BKC = block(x_BKC, mask_B1KK)
        with torch.autocast(device.type, enabled=False):
            return self.head(self.norm_out(x_BKC))
