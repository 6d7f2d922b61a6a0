"""The paper's task: the next code at every position of a segment, and skill over ten codes ahead.

In: sequences of codes [T, D] with their singular values, TrainConfig.  Out: the loss of random batches, validation, the
model.

The paper's loss, its Equation 1, is the squared error in weights. With φ = mean + c Σ Vᵀ and orthonormal rows of Vᵀ,

    |φ − φ̃|² = Σ_d σ_d² (c_d − c̃_d)² + what lies outside the basis,

where σ are the trial's own singular values and the last term is no model's doing. So no weights are needed.

Shapes: B batch, K context, T snapshots, D code, H horizons, J trials, S segments, R rows of all trials laid end to end,
L = K + ahead rows of a segment.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tipl.config.presets import LossName, TrainConfig
from tipl.errors import TiplError
from tipl.models import KINDS, CodeModel, TIPLConfig
from tipl.training.devices import ALONE, Worker
from tipl.training.loop import SKILL_HORIZONS, Validation

VALIDATION_SEGMENTS = 256
"""How many segments of the validation trials are looked at; the same ones at every validation of every run."""

COMPILED_FROM = 100_000
"""Steps from which the 20 s that torch takes to compile the network for a GPU are made up for by the steps after it,
1.4 times as fast."""


class Segments:
    """Every segment of K codes and the `ahead` codes after them, in one tensor that is read by index.

    Trials lie end to end, each with K − 1 rows of padding before its first code, so that the histories at a trial's
    start, shorter than K, are segments like all others and are padded on the left.

    sequences: codes [T, D] of each trial; context: K.
    """

    def __init__(self, sequences: Sequence[Tensor], context: int, ahead: int) -> None:
        padding = context - 1
        D = sequences[0].shape[1]
        self.codes_RD = torch.cat([part for codes in sequences for part in (codes.new_zeros(padding, D), codes)])
        self.timesteps_R = torch.cat([torch.arange(-padding, len(codes)) for codes in sequences])
        """A row's snapshot number; below 0 in padding."""
        firsts = np.cumsum([0, *(padding + len(codes) for codes in sequences[:-1])])
        self.starts_S = torch.cat(
            [first + torch.arange(len(codes) - ahead) for first, codes in zip(firsts, sequences, strict=True)]
        )
        """The first row of a segment: its K − 1 rows on is the origin, t = 0 … T − 1 − ahead."""
        self.trials_S = torch.cat([torch.full((len(codes) - ahead,), j) for j, codes in enumerate(sequences)])
        """Which of the sequences a segment is of."""
        self.offsets_L = torch.arange(context + ahead)

    def to(self, device: torch.device) -> "Segments":
        """Move the tensors to the device; return itself."""
        self.codes_RD, self.timesteps_R, self.starts_S, self.trials_S, self.offsets_L = (
            each.to(device) for each in (self.codes_RD, self.timesteps_R, self.starts_S, self.trials_S, self.offsets_L)
        )
        return self

    def __len__(self) -> int:
        return len(self.starts_S)

    def gather(self, index_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the codes [B, L, D] and timesteps [B, L] of segments index_B, and which are no padding [B, L]."""
        rows_BL = self.starts_S[index_B, None] + self.offsets_L
        timesteps_BL = self.timesteps_R[rows_BL]
        return self.codes_RD[rows_BL], timesteps_BL, timesteps_BL >= 0


class NextCode:
    """The paper's task: predict the code after every position of a segment, by mean squared error.

    The loss is Σ_d s_d² (c_d − c̃_d)², meant over valid positions and divided by `unit`, one number for all trials. s is
    σ of the trial, 1 / standard deviation over the training trials, or 1, as `config.loss` says. Segments are drawn
    with replacement, all origins of all training trials alike.

    unit: what the mean code of the training trials as a forecast would cost, so that a loss of 1 is that. Where `loss`
        is weights, loss · unit / P is the mean squared error in weights less the reconstruction floor.
    """

    one_shape: ClassVar = True

    def __init__(
        self,
        train: Sequence[np.ndarray],
        validation: Sequence[np.ndarray],
        scales: Sequence[np.ndarray],
        config: TrainConfig,
        basis: Mapping[str, Any],
        worker: Worker = ALONE,
    ) -> None:
        """
        Args:
            train, validation: codes [T, D] of each trial.
            scales: the singular values σ [D] of each training trial, then of each validation trial.
            config: the loss, the batch size and the shape of the model.
            basis: of the codes: `basis` and `centered`, which the model remembers.
            worker: the process that this is.

        Raises:
            TiplError: the codes of the validation trials never change.
        """
        self.model: CodeModel = KINDS[config.model](
            TIPLConfig(
                dim=train[0].shape[1],
                context=config.context,
                max_timestep=max(len(codes) for codes in train) - 2,  # the last origin that has a code to learn from
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                width=config.width,
                dropout=config.dropout,
                absolute_time=config.absolute_time,
                residual=config.residual,
                basis=basis.get("basis"),
                centered=basis.get("centered", False),
            )
        )
        mean_D, std_D = _moments(train)
        if config.standardize:
            self.model.mean_D.copy_(torch.from_numpy(mean_D))
            self.model.std_D.copy_(torch.from_numpy(std_D))
        errors_JD = _error_scales(config.loss, scales, std_D)
        squares = [np.square(s_D * (codes - mean_D)).sum(1) for s_D, codes in zip(errors_JD, train, strict=False)]
        self.unit = float(np.concatenate(squares).mean()) or 1.0
        errors_JD = torch.from_numpy(errors_JD / self.unit**0.5).float().to(worker.device)
        self.train_errors_JD, validation_errors_JD = errors_JD[: len(train)], errors_JD[len(train) :]
        self.worker, self.batch_size = worker, config.batch_size
        standardized = [self.model.standardize(_tensor(codes)) for codes in train]
        self.train = Segments(standardized, config.context, 1).to(worker.device)
        self.model.to(worker.device)
        self.predict: Callable[[Tensor, Tensor, Tensor], Tensor] = self.model.predict
        if worker.device.type == "cuda" and config.steps >= COMPILED_FROM and shutil.which("cc"):
            self.predict = torch.compile(self.predict, dynamic=False)
        segments = Segments([_tensor(codes) for codes in validation], config.context, SKILL_HORIZONS[-1])
        chosen_B = torch.randperm(len(segments), generator=torch.Generator().manual_seed(0))[:VALIDATION_SEGMENTS]
        codes_BLD, timesteps_BL, valid_BL = (each.to(worker.device) for each in segments.gather(chosen_B))
        self.window = codes_BLD[:, : config.context], timesteps_BL[:, : config.context], valid_BL[:, : config.context]
        self.future_BHD = codes_BLD[:, config.context :]
        trials_B = segments.trials_S[chosen_B]
        self.validation_errors_B1D = validation_errors_JD[trials_B.to(worker.device), None]
        scale_B1D = torch.stack([_tensor(scale) for scale in scales[len(train) :]])[trials_B, None]
        self.scale_B1D = scale_B1D.to(worker.device)
        self.persistence_H = self._squared_errors(codes_BLD[:, config.context - 1, None])
        if not all(self.persistence_H[h - 1] > 0 for h in SKILL_HORIZONS):
            raise TiplError("The codes of the validation trials never change: there is nothing to forecast.")

    def draw(self, batches: torch.Generator) -> Tensor:
        """Return a batch as numbers [B] of segments, drawn from `batches` with replacement."""
        return torch.randint(len(self.train), (self.batch_size,), generator=batches)

    def loss(self, index_B: Tensor) -> Tensor:
        """Return this process's share [] of the loss of the segments index_B."""
        mine_B = self.worker.share(index_B)
        codes_BLD, timesteps_BL, valid_BL = self.train.gather(mine_B)
        predicted_BKD = self.predict(codes_BLD[:, :-1], timesteps_BL[:, :-1], valid_BL[:, :-1])
        mine_BK, all_BK = valid_BL[:, :-1], valid_BL[:, :-1]
        if self.worker.ranks > 1:  # the mean is over the valid positions of the whole batch
            all_BK = self.train.gather(index_B.to(self.worker.device))[2][:, :-1]
        # An error of a standardized code times the standard deviation is that of the code.
        errors_B1D = self.train_errors_JD[self.train.trials_S[mine_B], None] * self.model.std_D
        return _mean_squared_error(predicted_BKD - codes_BLD[:, 1:], errors_B1D, mine_BK, all_BK)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Return the loss and the skill, by horizon, on segments of the validation trials, always the same."""
        self.model.eval()
        codes_BKD, timesteps_BK, valid_BK = self.window
        next_BKD = torch.cat([codes_BKD[:, 1:], self.future_BHD[:, :1]], 1)
        error_BKD = self.model(codes_BKD, timesteps_BK, valid_BK) - next_BKD
        loss = _mean_squared_error(error_BKD, self.validation_errors_B1D, valid_BK, valid_BK)
        predicted_BHD = self.model.rollout(codes_BKD, timesteps_BK, valid_BK, SKILL_HORIZONS[-1])
        skill_H = (1 - self._squared_errors(predicted_BHD) / self.persistence_H).tolist()
        self.model.train()
        return Validation(loss.item(), {h: skill_H[h - 1] for h in SKILL_HORIZONS})

    def _squared_errors(self, forecast_BHD: Tensor) -> Tensor:
        """[H] summed over segments and, in the scale of each trial, over dimensions."""
        return ((self.future_BHD - forecast_BHD) * self.scale_B1D).square().sum((0, 2))

    def save(self, out: Path) -> None:
        """Write the model into the folder `out`."""
        self.model.save(out)


def _mean_squared_error(error_BKD: Tensor, scale_B1D: Tensor, valid_BK: Tensor, all_BK: Tensor) -> Tensor:
    """Summed over dimensions and valid positions, over how many positions there are in `all_BK`."""
    return ((error_BKD * scale_B1D).square() * valid_BK[..., None]).sum() / all_BK.sum()


def _moments(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of all rows; 0 for what only rounding moves."""
    all_TD = np.concatenate(sequences).astype(np.float64)
    std_D = all_TD.std(0)
    return all_TD.mean(0), np.where(std_D > 1e-12 * np.abs(all_TD).max(0), std_D, 0.0)


def _error_scales(loss: LossName, scales: Sequence[np.ndarray], std_D: np.ndarray) -> np.ndarray:
    """s [J, D]: what a code's error is multiplied by before it is squared."""
    match loss:
        case "weights":
            return np.stack([np.asarray(scale, np.float64) for scale in scales])
        case "standardized":
            return np.tile(np.divide(1.0, std_D, out=np.zeros_like(std_D), where=std_D > 0), (len(scales), 1))
        case "codes":
            return np.ones((len(scales), len(std_D)))


def _tensor(codes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(codes, np.float32))
