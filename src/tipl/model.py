"""TIPL as the paper has it (arXiv 2503.04074): a small causal Transformer that predicts the next code of a trial.

In: the codes of the last K snapshots and their numbers.  Out: the next code and, fed back, as many as are asked for.

Shapes: B batch, K context, D code, C width of the model, A attention heads.
"""

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from tipl.errors import TiplError
from tipl.presets import BasisName

FORMAT = "tipl-model"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class TIPLConfig:
    """The shape of a model and the codes that it was made for.

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
            raise TiplError(f"These settings describe no model; check them: {dataclasses.asdict(self)}.")


class Dropout(nn.Module):
    """Each entry is 0 with the given probability and x / (1 - probability) otherwise; the identity in eval mode.

    It draws 16 bits an entry, four entries at once. `torch.nn.Dropout` draws a double an entry, which takes a tenth
    of a training step on CPU. The probability is thereby rounded to a multiple of 2^-16.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = draws >= round(self.probability * 2**16) - 2**15
        return x * keep.to(x.dtype).mul_(1 / (1 - self.probability))


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √(C/A) + mask) v, with dropout on the attention weights."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BKC: Tensor, mask_B1KK: Tensor) -> Tensor:
        """`mask_B1KK` is added to the logits: 0 where row (query) may see column (key), -inf where it may not."""
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


class TIPL(nn.Module):
    """A GPT over codes: at every position of a window it predicts the code after it.

    x_k = dropout(LayerNorm(E c_k + e_t)), causal pre-LN blocks, LayerNorm, and a linear head onto the next code.
    The paper leaves the rest open; it is as in the Decision Transformer, on which the paper builds: ReLU, dropout on
    the embedding, the attention weights and both branches, and no embedding of the place in the window.

    Callers deal in raw codes. The model holds the mean and the standard deviation of the training codes (buffers, 0
    and 1 until they are set) and standardizes on the way in and back on the way out.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, config: TIPLConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_D", torch.zeros(config.dim))
        self.register_buffer("std_D", torch.ones(config.dim))
        self.embed_code = nn.Linear(config.dim, config.width)
        self.embed_time = nn.Embedding(config.max_timestep + 1, config.width) if config.absolute_time else None
        self.norm_embedding = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
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

    def standardize(self, codes: Tensor) -> Tensor:
        """(c - mean) / std, for codes of shape [..., D]."""
        return (codes - self.mean_D) / self.std_D

    def predict(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """`forward` on standardized codes, to standardized codes [B, K, D].

        Under autocast only the blocks run in low precision: a step between two codes is small beside the codes, so
        what is read, written and carried along the residual stream stays float32.
        """
        B, K, D = codes_BKD.shape
        assert self.config.dim == D and 1 <= K <= self.config.context, (codes_BKD.shape, self.config)
        assert timesteps_BK.shape == valid_BK.shape == (B, K), (timesteps_BK.shape, valid_BK.shape)
        device = codes_BKD.device
        # A padded code may hold anything, NaN too, which a zero attention weight would not stop.
        codes_BKD = codes_BKD.masked_fill(~valid_BK[..., None], 0.0)
        with torch.autocast(device.type, enabled=False):
            x_BKC = self.embed_code(codes_BKD)
            if self.embed_time is not None:
                x_BKC = x_BKC + self.embed_time(timesteps_BK.clamp(0, self.config.max_timestep))
            x_BKC = self.dropout(self.norm_embedding(x_BKC))
        past_KK = torch.ones(K, K, dtype=torch.bool, device=device).tril()
        # A padded position sees itself alone: every row of the softmax has an entry, and no other row sees it.
        itself_KK = torch.eye(K, dtype=torch.bool, device=device)
        seen_BKK = past_KK & valid_BK[:, None, :] | itself_KK
        mask_B1KK = torch.zeros(B, 1, K, K, device=device).masked_fill_(~seen_BKK[:, None], -torch.inf)
        for block in self.blocks:
            x_BKC = block(x_BKC, mask_B1KK)
        with torch.autocast(device.type, enabled=False):
            step_BKD = self.head(self.norm_out(x_BKC))
            return codes_BKD + step_BKD if self.config.residual else step_BKD

    def forward(self, codes_BKD: Tensor, timesteps_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """The code after every position of a window of at most `config.context` positions.

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
        """The next `horizon` codes, each predicted from the last `config.context` codes, its own predictions included.

        Args: as for `forward`, but of any length K ≥ 1; only the last `config.context` positions are used.

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

    def save(self, folder: Path) -> None:
        """Write the weights and then the config into `folder`, each file whole or not at all.

        Raises:
            TiplError: the folder cannot be written.
        """
        record = {"format": FORMAT, "version": VERSION, "model": "paper", "config": dataclasses.asdict(self.config)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_file(folder / WEIGHTS_FILE, safetensors.torch.save(tensors))
        write_file(folder / CONFIG_FILE, (json.dumps(record, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "TIPL":
        """The model in `folder`, in eval mode.

        Raises:
            TiplError: there is no model, it is cut short, of another version, or its weights do not fit its config.
        """
        folder = Path(folder)
        with torch.device("meta"):  # shapes alone: drawing weights to throw away would disturb torch's generator
            model = cls(_read_config(folder / CONFIG_FILE))
        path = folder / WEIGHTS_FILE
        try:
            tensors = safetensors.torch.load(path.read_bytes())
        except OSError as error:
            raise TiplError(f"Cannot read {path} ({error.strerror}); train the model again.") from error
        except SafetensorError as error:
            raise TiplError(f"{path} is cut short or no safetensors file; copy or train the model again.") from error
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise TiplError(
                    f"{path} does not fit {CONFIG_FILE} beside it: {name} is {_describe(found.get(name))}, expected "
                    f"{_describe(expected.get(name))}; copy both files from one model."
                )
        # Copies lie in memory as torch lays it out, so that the same model computes the same bits as before.
        model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        return model.eval()


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, or a crash at any moment, finds the old content or the new one.

    Raises:
        TiplError: the place cannot be written, or the disk is full.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise TiplError(f"Cannot write {path}: {error.strerror}; free some space or choose another place.") from error


def _read_config(path: Path) -> TIPLConfig:
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise TiplError(
            f"There is no model in {path.parent}: it has no {path.name}; make one with `tipl train`."
        ) from (error)
    except OSError as error:
        raise TiplError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise TiplError(f"{path} is cut short or no JSON; copy or train the model again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise TiplError(f"{path} does not describe a TIPL model; give a folder that `tipl train` wrote.")
    if (record.get("version"), record.get("model")) != (VERSION, "paper"):
        raise TiplError(
            f"{path} is of version {record.get('version')}, model {record.get('model')!r}; this program reads version "
            f"{VERSION}, model 'paper': train the model again or use the program that wrote it."
        )
    try:
        return TIPLConfig(**cast(dict, record["config"]))
    except (KeyError, TypeError) as error:
        raise TiplError(f"{path} lacks settings of a model or has unknown ones ({error}); train it again.") from error


def _describe(entry: tuple[torch.Size, torch.dtype] | None) -> str:
    return "absent" if entry is None else f"{entry[1]} {list(entry[0])}"
