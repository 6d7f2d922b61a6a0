"""The causal task: displacements at many horizons, from inner products.

In: windows of the training and validation trials of one or several stores, in memory (`TrainingWindows`) or in files
(`WindowFiles`).  Out: the loss of random batches, validation, the model.

Windows in files are taken into memory where all of them are few, and are otherwise read batch by batch: the same
numbers either way.

Shapes: B windows, J tokens, H horizons, F facts of a window.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tipl.config.presets import TrainConfig
from tipl.errors import TiplError
from tipl.models.causal import EPOCH_INDICES, CausalConfig, CausalTIPL, Features, Outlook, described, facts, told_apart
from tipl.representation.packed import WindowFiles
from tipl.representation.windows import HORIZONS, TrainingWindows, noisy
from tipl.training.devices import ALONE, Worker
from tipl.training.loop import Validation

RIDGE = 1e-3  # of the mean square of a token, for the linear part
_ERROR_SHARE = 0.01  # of the loss that is for the expected error
_LEAST_SHARE = 1e-4  # of an error in the likelihood
_AT_ONCE = 2048  # windows in validation
_EVENLY = 0.5  # of the windows are drawn evenly
_HELD = {"cpu": 1 << 30, "cuda": 16 << 30}  # bytes of windows up to which they are kept in a device's memory

Lessons = TrainingWindows | WindowFiles
"""Windows of one store."""


class _Batch(NamedTuple):
    """Windows of one store or of several."""

    token_BJF: Tensor
    fact_BF: Tensor
    epoch_index_B: Tensor
    own_BJJ: Tensor
    toward_BJH: Tensor
    moved_BH: Tensor
    weight_BH: Tensor
    often_B: Tensor
    """How often a window is drawn, beside one drawn evenly."""

    @property
    def features(self) -> Features:
        return Features(self.token_BJF, self.fact_BF, self.epoch_index_B)

    def error(self, outlook: Outlook) -> Tensor:
        """[B, H] squared errors of the weighted sums of tokens, in the windows' units."""
        a_BHJ = outlook.coefficients_BHJ
        crossed_BH = torch.einsum("bhj,bjh->bh", a_BHJ, self.toward_BJH)
        return self.moved_BH - 2 * crossed_BH + (a_BHJ @ self.own_BJJ * a_BHJ).sum(2)


_reader = ThreadPoolExecutor(1, "windows")


class Displacements:
    """Weighted sums of tokens fitted to what came, each window's squared error as a share of its trial's displacements.

    The error of a sum is a quadratic form of its coefficients, |y|² − 2 a·b + aᵀGa, so no weights are needed. Its
    weight is a window's unit over its trial's mean displacement, which makes the mean over all windows the trial's
    1 − skill. Stores are drawn alike, windows with replacement, half of them in proportion to the displacement that
    came, and what they say is divided by how often they are drawn: a mean as of windows drawn evenly, of far less
    variance.
    """

    one_shape: ClassVar = False  # as many windows of each store as are drawn

    def __init__(
        self,
        train: Sequence[Lessons],
        validation: Sequence[Lessons],
        config: TrainConfig,
        worker: Worker = ALONE,
    ) -> None:
        """
        Args:
            train, validation: the windows of each store, of as many tokens.
            config: batch size, noise, the seed of the noise, and the shape of the model.
            worker: the process that this is.

        Raises:
            TiplError: the weights of the validation trials never change.
        """
        self.unit = 1.0
        tokens = train[0].tokens
        self.model = CausalTIPL(CausalConfig(config.num_layers, config.num_heads, config.width, tokens))
        with torch.no_grad():
            self.model.linear.copy_(torch.from_numpy(_linear_part(train)))
        self.model.to(worker.device)
        self.worker, self.batch_size = worker, config.batch_size
        parts, rng = [(each, 1 - config.noise) for each in train], np.random.default_rng(config.seed)
        if config.noise:
            parts += [(_with_noise(each, rng), config.noise) for each in train]
        window_bytes = 4 * (2 * tokens * tokens + tokens * len(HORIZONS))  # in memory, nearly
        count = sum(len(each) for each in [*(each for each, _ in parts), *validation])
        few = count * window_bytes <= _held(worker.device)
        self.train = [_read(each, worker.device, few) for each, _ in parts]
        chance_W = torch.cat([share * each.chance_B for each, (_, share) in zip(self.train, parts, strict=True)])
        self.until_W = chance_W.cumsum(0) / chance_W.sum()
        """Of the windows of all parts, end to end: the chance of these and those before."""
        self.streams = any(isinstance(each, _Streamed) for each in self.train)
        self.ahead: list[tuple[Tensor, Future[_Batch]]] = []
        """Batches that were drawn ahead, by their index."""
        self.ahead_H = torch.tensor(HORIZONS, dtype=torch.float32, device=worker.device)
        self.validation = [_read(each, worker.device, few) for each in validation]
        if any(not each.moves for each in self.validation):
            raise TiplError("The weights of the validation trials never change: there is nothing to forecast.")

    def draw(self, batches: torch.Generator) -> Tensor:
        """Return a batch as numbers [B] of windows, drawn from `batches`."""
        index_B = self._drawn(batches)
        if self.streams:  # the next batch is read while this one is learned from
            ahead = torch.Generator()
            ahead.set_state(batches.get_state())
            next_B = self._drawn(ahead)
            self.ahead = [*self.ahead[-1:], (next_B, _reader.submit(self._batch, next_B))]
        return index_B

    def _drawn(self, batches: torch.Generator) -> Tensor:
        at_B = torch.rand(self.batch_size, generator=batches, dtype=torch.float64)
        return torch.searchsorted(self.until_W, at_B).clamp(max=len(self.until_W) - 1)

    def _batch(self, index_B: Tensor) -> _Batch:
        """This process's share of a batch."""
        mine_B, first, drawn = self.worker.share(index_B), 0, []
        for data in self.train:
            of_these_B = mine_B[(mine_B >= first) & (mine_B < first + len(data))]
            if len(of_these_B):
                drawn.append(data.batch(of_these_B - first))
            first += len(data)
        return _Batch(*map(torch.cat, zip(*drawn, strict=True)))

    def loss(self, index_B: Tensor) -> Tensor:
        """Return this process's share [] of the loss of the windows index_B."""
        read = next((read for which_B, read in self.ahead if torch.equal(which_B, index_B)), None)
        batch = read.result() if read else self._batch(index_B)
        outlook = self.model(batch.features)
        with torch.autocast(self.worker.device.type, enabled=False):
            error_BH = batch.error(outlook)
            # Rounding may leave an error below 0, of which there is no likelihood.
            share_BH = (error_BH.detach() / self.ahead_H).clamp(min=_LEAST_SHARE)
            likely_BH = outlook.log_error_BH + share_BH / outlook.log_error_BH.exp()
            loss_B = (batch.weight_BH * error_BH).mean(1) + _ERROR_SHARE * likely_BH.mean(1).clamp(max=100)
            return (loss_B / batch.often_B).sum() / self.batch_size

    @torch.no_grad()
    def validate(self) -> Validation:
        """Skill is the mean over stores of the mean over their trials; the loss is 1 − its mean over horizons."""
        self.model.eval()
        skills = [each.skill(self.model) for each in self.validation]
        self.model.train()
        mean_H = torch.stack(skills).mean(0)
        at = {h: mean_H[i].item() for i, h in enumerate(HORIZONS) if h in (1, 2, 5, 10, 20, 50, 100)}
        return Validation(1 - mean_H.mean().item(), at)

    def save(self, out: Path) -> None:
        """Write the model into the folder `out`."""
        self.model.save(out)


class _Read:
    """The windows of one store, read by index. What the model reads of tokens is made anew for every batch, of a third
    of the memory."""

    def __init__(self, came_B: np.ndarray, is_whole_B: np.ndarray, device: torch.device) -> None:
        evenly = np.full(len(came_B), 1 / len(came_B))
        chance = _EVENLY * evenly + (1 - _EVENLY) * (came_B / came_B.sum() if came_B.any() else evenly)
        self.chance_B = torch.from_numpy(chance)
        """Of a window among these: they add up to 1."""
        self.often_B = (chance * len(came_B)).astype(np.float32)
        self.moves = bool(came_B.any())
        self.whole_B = torch.from_numpy(is_whole_B).to(device)
        self.device = device

    def __len__(self) -> int:
        return len(self.whole_B)

    def batch(self, index_B: Tensor) -> _Batch:
        raise NotImplementedError

    def skill(self, model: CausalTIPL) -> Tensor:
        """[H] with every tensor forecast apart; without the windows of the policies as a whole."""
        error_H, moved_H = (torch.zeros(len(HORIZONS), device=self.whole_B.device) for _ in range(2))
        for index_B in torch.nonzero(~self.whole_B)[:, 0].split(_AT_ONCE):
            batch = self.batch(index_B)
            error_H += (batch.weight_BH * batch.error(model(batch.features))).sum(0)
            moved_H += (batch.weight_BH * batch.moved_BH).sum(0)
        return 1 - error_H / moved_H


class _Tensors(_Read):
    """Windows in the device's memory."""

    def __init__(self, windows: TrainingWindows, device: torch.device) -> None:
        super().__init__(_came(windows), windows.is_whole, device)
        self.fact_BF, self.epoch_index_B, self.own_BJJ, self.whole_BJJ, *self.rest = (
            each.to(device) for each in _tensors(windows, self.often_B)
        )

    def batch(self, index_B: Tensor) -> _Batch:
        own_BJJ = self.own_BJJ[index_B]
        token_BJF = described(own_BJJ, self.whole_BJJ[index_B])
        rest = (each[index_B] for each in self.rest)
        return _Batch(token_BJF, self.fact_BF[index_B], self.epoch_index_B[index_B], own_BJJ, *rest)


class _Streamed(_Read):
    """Windows in files."""

    def __init__(self, windows: WindowFiles, device: torch.device) -> None:
        super().__init__(windows.came, windows.is_whole, device)
        self._windows = windows

    def batch(self, index_B: Tensor) -> _Batch:
        index = index_B.cpu().numpy()
        tensors = _tensors(self._windows.read(index), self.often_B[index])
        fact_BF, epoch_index_B, own_BJJ, whole_BJJ, *rest = (each.to(self.device) for each in tensors)
        return _Batch(described(own_BJJ, whole_BJJ), fact_BF, epoch_index_B, own_BJJ, *rest)


def _read(windows: Lessons, device: torch.device, few: bool) -> _Read:
    if isinstance(windows, TrainingWindows):
        return _Tensors(windows, device)
    if few:
        return _Tensors(windows.read(np.arange(len(windows))), device)
    return _Streamed(windows, device)


def _held(device: torch.device) -> int:
    return _HELD[device.type]


def _with_noise(windows: Lessons, rng: np.random.Generator) -> Lessons:
    if isinstance(windows, TrainingWindows):
        return noisy(windows, rng)
    assert windows.noisy is not None
    return windows.noisy


def _came(windows: TrainingWindows) -> np.ndarray:
    """[B] the mean over horizons of a window's squared displacements, in its trial's, as drawn evenly."""
    return (windows.weight / windows.often[:, None] * windows.moved).mean(axis=1, dtype=np.float64)


def _tensors(windows: TrainingWindows, often_B: np.ndarray) -> tuple[Tensor, ...]:
    """What a `_Batch` is made of: facts, epoch indices, own and whole products, and the rest in its order."""
    weight = windows.weight / windows.often[:, None]
    arrays = windows.own, windows.whole, windows.toward, windows.moved, weight, often_B
    return (*facts(windows), *(torch.from_numpy(np.ascontiguousarray(each)) for each in arrays))


def _linear_part(train: Sequence[Lessons]) -> np.ndarray:
    """[EPOCH_INDICES, H, J] of a ridge regression on the windows of all stores, apart for each epoch index; of all for
    one that was not seen."""
    tokens = train[0].tokens
    gram, target = np.zeros((EPOCH_INDICES, tokens, tokens)), np.zeros((EPOCH_INDICES, tokens, len(HORIZONS)))
    blocks = ((block, len(each)) for each in train for block in _blocks(each))
    for windows, count in blocks:
        weight = windows.weight.mean(axis=1).astype(np.float64) / windows.often / count
        index_B = told_apart(windows)
        for index in np.unique(index_B):
            mine = index_B == index
            gram[index] += np.einsum("b,bij->ij", weight[mine], windows.own[mine])
            target[index] += np.einsum("b,bjh->jh", weight[mine], windows.toward[mine])
    unseen = ~gram.any(axis=(1, 2))
    gram[unseen], target[unseen] = gram[~unseen].sum(axis=0), target[~unseen].sum(axis=0)
    penalty = RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / tokens * np.eye(tokens)
    return np.linalg.solve(gram + penalty, target).transpose(0, 2, 1).astype(np.float32)


def _blocks(windows: Lessons) -> Iterable[TrainingWindows]:
    return [windows] if isinstance(windows, TrainingWindows) else windows.blocks()
