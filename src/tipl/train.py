"""Training: one loop for every model, seeded, stopped at any moment and resumed to the bit.

In: codes of training and validation trials, TrainConfig.  Out: a folder with the best model, the last checkpoint
(`checkpoint.safetensors`) and the curve (`training.json`).

The loop (`_Training`) knows a model only as a `Task`. The paper's task is `NextCode`.

Shapes: B batch, K context, T snapshots, D code, H horizons, S segments, R rows of all trials laid end to end,
L = K + ahead rows of a segment.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tipl.errors import TiplError
from tipl.model import CONFIG_FILE, TIPL, WEIGHTS_FILE, TIPLConfig, write_file
from tipl.presets import SVDConfig, TrainConfig
from tipl.progress import console, steps_progress
from tipl.representation import Codes, fit_svd
from tipl.store import Store

CHECKPOINT_FILE = "checkpoint.safetensors"
CURVE_FILE = "training.json"
CODES_FOLDER = "codes.zarr"
VERSION = 1

SKILL_HORIZONS = (1, 10)
"""Codes ahead at which validation skill is measured. The model with the best skill at the last of them is kept."""
VALIDATION_SEGMENTS = 256
"""How many segments of the validation trials are looked at; the same ones at every validation of every run."""


def train(
    store: Path,
    out: Path,
    config: TrainConfig = TrainConfig(),
    svd: SVDConfig = SVDConfig(),
    *,
    codes: Path | None = None,
    model: str = "paper",
    resume: bool = False,
) -> Path:
    """Train a model on the training trials of a store; choose it on the validation trials; leave the test trials be.

    Args:
        store: the data set.
        out: the model's folder, made if missing.
        codes: what `fit-svd` wrote for this store; without it the SVD `svd` is fitted to `out`/codes.zarr.
        model: "paper", TIPL as the paper has it.
        resume: go on from the checkpoint in `out`.

    Returns:
        `out`.

    Raises:
        TiplError: the store, the codes or `out` cannot be used as they are; nothing was overwritten.
    """
    store, out = Path(store), Path(out)
    if model != "paper":
        raise TiplError(f"There is no model {model!r} to train yet; only 'paper' exists.")
    check_out(out, resume)
    split = Store.open(store).split()
    if codes is None:
        codes = out / CODES_FOLDER
        console.print(
            f"train: no --codes given, so takes those of a temporal SVD ({svd.basis}, d = {svd.dim}) in {codes}"
        )
        fit_svd(store, codes, svd)
    opened = Codes.open(codes)
    if opened.context is not None:
        raise TiplError(
            f"{codes} is of the {opened.config.basis} basis, in which a snapshot has another code at every origin; "
            "the paper's model learns from one code a snapshot: fit the full or the pooled basis."
        )
    missing = sorted({*split.train, *split.validation} - set(opened.seeds))
    if missing:
        raise TiplError(f"{codes} lacks trials of {store}: {missing}; run `tipl fit-svd` on this store.")
    fit(
        [opened.codes(seed) for seed in split.train],
        [opened.codes(seed) for seed in split.validation],
        config,
        out,
        resume=resume,
        scales=[opened.basis(seed).scale_D for seed in split.validation],
        basis=dataclasses.asdict(opened.config),
        trials={"store": str(store), "codes": str(codes), "train": [*split.train], "validation": [*split.validation]},
    )
    return out


def fit(
    train: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    scales: Sequence[np.ndarray] | None = None,
    basis: Mapping[str, Any] | None = None,
    trials: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TIPL:
    """Train TIPL on sequences of codes.

    Every `config.validate_every` steps, and after the last one, the model is measured on the validation trials, kept
    in `out` if it is the best so far, and the state of the training is written beside it. The best model is the one
    with the highest skill ten codes ahead: that is the forecast that the paper makes, and unlike the loss it counts
    the errors that autoregression piles up. On one machine, with as many threads, the same input gives the same model
    to the bit, however often the training was stopped and resumed.

    Args:
        train: one array [T, D] a training trial; T ≥ 2 may differ.
        validation: likewise, T > 10.
        out: the folder, made if missing.
        resume: go on from the checkpoint in `out`, if there is one.
        scales: the singular values [D] of each validation trial, by which its skill is measured in weights (a code
            times these is a displacement in orthonormal directions); without them in codes, each dimension alike.
        basis: the SVDConfig that made the codes, as a dict; kept in the model's config.
        trials: where the sequences come from; kept in the curve's file.
        progress: show progress on standard error.

    Returns:
        The best model, in eval mode, as read back from `out`.

    Raises:
        TiplError: codes that cannot be learned from, a folder that is in use, a checkpoint of another config or of
            other codes, or a loss that is no longer finite.
        KeyboardInterrupt: after the step in hand, with a checkpoint from which `resume` goes on.
    """
    out = Path(out)
    check_out(out, resume)
    _check_codes(train, "training", shortest=2)
    _check_codes(validation, "validation", shortest=SKILL_HORIZONS[-1] + 1)
    if len(dims := {codes.shape[1] for codes in (*train, *validation)}) > 1:
        raise TiplError(f"The codes of the trials differ in size, {sorted(dims)}; give one d for all.")
    if scales is None:
        scales = [np.ones(codes.shape[1]) for codes in validation]
    assert [scale.shape for scale in scales] == [codes.shape[1:] for codes in validation], "one scale [D] a trial"
    facts = {
        "config": dataclasses.asdict(config),
        "codes": {
            "basis": dict(basis or {}),
            "sha256": _digest([*train, *validation, *scales]),
            "trials": dict(trials or {}),
        },
    }
    checkpoint = None
    if (out / CHECKPOINT_FILE).exists():
        checkpoint = _Checkpoint.read(out)
        _check_same(checkpoint.facts, facts, out)
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator: leave the caller's as it was
        torch.default_generator.manual_seed(config.seed)
        task = NextCode(train, validation, scales, config, basis or {})
        training = _Training(task, config, out, facts, progress)
        if checkpoint is None:
            training.write_checkpoint()
        else:
            training.restore(checkpoint)
        training.run()
    return TIPL.load(out)


def check_out(out: Path, resume: bool) -> None:
    """Raises TiplError if `out` holds a model or a checkpoint that training would overwrite."""
    if out.exists() and not out.is_dir():
        raise TiplError(f"{out} is a file; give --out a folder.")
    if (out / CHECKPOINT_FILE).exists():
        if not resume:
            raise TiplError(f"{out} holds a training already; pass --resume to go on with it, or give another --out.")
    elif (out / WEIGHTS_FILE).exists() or (out / CONFIG_FILE).exists():
        raise TiplError(f"{out} holds a model without a checkpoint to go on from; give another --out.")


class Segments:
    """Every segment of K codes and the `ahead` codes after them, in one tensor that is read by index.

    Trials lie end to end, each with K − 1 rows of padding before its first code, so that the histories at a trial's
    start, shorter than K, are segments like all others and are padded on the left.
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

    def __len__(self) -> int:
        return len(self.starts_S)

    def gather(self, index_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [B, L, D], timesteps [B, L], and which rows are codes and not padding [B, L]."""
        rows_BL = self.starts_S[index_B, None] + self.offsets_L
        timesteps_BL = self.timesteps_R[rows_BL]
        return self.codes_RD[rows_BL], timesteps_BL, timesteps_BL >= 0


class Validation(NamedTuple):
    """How good a model is on the validation trials."""

    loss: float
    skill: dict[int, float]
    """By horizon: 1 − summed squared error / that of persistence. The last horizon chooses the model."""


class Task(Protocol):
    """A model and what it learns from: all that the training loop knows of either."""

    @property
    def model(self) -> nn.Module: ...

    def loss(self, batches: torch.Generator) -> Tensor:
        """The loss of a random batch, in training mode."""
        ...

    def validate(self) -> Validation: ...

    def save(self, out: Path) -> None: ...


class NextCode:
    """The paper's task: predict the code after every position of a segment, by mean squared error.

    The error is that of standardized codes, meant over valid positions and dimensions; with `standardize` off, of
    raw codes. Segments are drawn with replacement, all origins of all training trials alike.
    """

    def __init__(
        self,
        train: Sequence[np.ndarray],
        validation: Sequence[np.ndarray],
        scales: Sequence[np.ndarray],
        config: TrainConfig,
        basis: Mapping[str, Any],
    ) -> None:
        self.model = TIPL(
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
        if config.standardize:
            all_TD = np.concatenate(train).astype(np.float64)
            std_D = all_TD.std(0)
            self.model.mean_D.copy_(torch.from_numpy(all_TD.mean(0)))
            self.model.std_D.copy_(torch.from_numpy(np.where(std_D > 0, std_D, 1.0)))
        self.batch_size = config.batch_size
        self.train = Segments([self.model.standardize(_tensor(codes)) for codes in train], config.context, 1)
        segments = Segments([_tensor(codes) for codes in validation], config.context, SKILL_HORIZONS[-1])
        chosen_B = torch.randperm(len(segments), generator=torch.Generator().manual_seed(0))[:VALIDATION_SEGMENTS]
        codes_BLD, timesteps_BL, valid_BL = segments.gather(chosen_B)
        self.window = codes_BLD[:, : config.context], timesteps_BL[:, : config.context], valid_BL[:, : config.context]
        self.future_BHD = codes_BLD[:, config.context :]
        self.scale_B1D = torch.stack([_tensor(scale) for scale in scales])[segments.trials_S[chosen_B], None]
        self.persistence_H = self._squared_errors(codes_BLD[:, config.context - 1, None])
        if not all(self.persistence_H[h - 1] > 0 for h in SKILL_HORIZONS):
            raise TiplError("The codes of the validation trials never change: there is nothing to forecast.")

    def loss(self, batches: torch.Generator) -> Tensor:
        index_B = torch.randint(len(self.train), (self.batch_size,), generator=batches)
        codes_BLD, timesteps_BL, valid_BL = self.train.gather(index_B)
        predicted_BKD = self.model.predict(codes_BLD[:, :-1], timesteps_BL[:, :-1], valid_BL[:, :-1])
        return _mean_squared_error(predicted_BKD, codes_BLD[:, 1:], valid_BL[:, :-1])

    @torch.no_grad()
    def validate(self) -> Validation:
        self.model.eval()
        codes_BKD, timesteps_BK, valid_BK = self.window
        next_BKD = torch.cat([codes_BKD[:, 1:], self.future_BHD[:, :1]], 1)
        loss = _mean_squared_error(
            self.model.standardize(self.model(codes_BKD, timesteps_BK, valid_BK)),
            self.model.standardize(next_BKD),
            valid_BK,
        )
        predicted_BHD = self.model.rollout(codes_BKD, timesteps_BK, valid_BK, SKILL_HORIZONS[-1])
        skill_H = (1 - self._squared_errors(predicted_BHD) / self.persistence_H).tolist()
        self.model.train()
        return Validation(loss.item(), {h: skill_H[h - 1] for h in SKILL_HORIZONS})

    def _squared_errors(self, forecast_BHD: Tensor) -> Tensor:
        """[H] summed over segments and, in the scale of each trial, over dimensions."""
        return ((self.future_BHD - forecast_BHD) * self.scale_B1D).square().sum((0, 2))

    def save(self, out: Path) -> None:
        self.model.save(out)


def _mean_squared_error(predicted_BKD: Tensor, true_BKD: Tensor, valid_BK: Tensor) -> Tensor:
    squared_BKD = (predicted_BKD - true_BKD).square() * valid_BK[..., None]
    return squared_BKD.sum() / (valid_BK.sum() * predicted_BKD.shape[-1])


class _Checkpoint(NamedTuple):
    """All that the rest of a training depends on: one safetensors file, what is no tensor as JSON in its header."""

    facts: dict[str, Any]
    """The settings and the data: the same in every checkpoint of a training."""
    progress: dict[str, Any]
    """Step, precision, seconds, curve, and the sum of losses since the last validation."""
    tensors: dict[str, Tensor]
    """model.NAME, optimizer.INDEX.NAME and the states of the two generators, random.batches and random.dropout."""

    def write(self, out: Path) -> None:
        header = {"version": VERSION, "facts": self.facts, "progress": self.progress}
        write_file(out / CHECKPOINT_FILE, safetensors.torch.save(self.tensors, {"training": json.dumps(header)}))

    @classmethod
    def read(cls, out: Path) -> "_Checkpoint":
        path = out / CHECKPOINT_FILE
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("training", "{}"))
                # Copies, so that nothing points into a file that the next checkpoint replaces.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except OSError as error:
            raise TiplError(f"Cannot read {path}: {error.strerror}.") from error
        except (SafetensorError, ValueError) as error:
            raise TiplError(f"{path} is cut short or no checkpoint; remove {out} and train again.") from error
        if header.get("version") != VERSION:
            raise TiplError(
                f"{path} is of version {header.get('version')}, this program reads {VERSION}; train again in another "
                "--out."
            )
        return cls(header["facts"], header["progress"], tensors)


class _Training:
    """The loop: AdamW on a task, warm-up, clipping, validation, checkpoints."""

    def __init__(self, task: Task, config: TrainConfig, out: Path, facts: dict[str, Any], progress: bool) -> None:
        self.task, self.config, self.out, self.facts, self.progress = task, config, out, facts, progress
        self.weights = list(task.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.batches = torch.Generator().manual_seed(config.seed)
        self.precision = fast_precision()
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, Any]] = []
        self.loss_sum, self.loss_count = 0.0, 0

    def run(self) -> None:
        """Train to the last step. Ctrl-C ends it after the step in hand, with a checkpoint."""
        left = self.config.steps - self.step
        if left == 0:
            return self._say(f"{self.out} is finished, {self.step:,} steps; nothing to do")
        self._say(f"steps {self.step + 1:,} to {self.config.steps:,} in {_name(self.precision)}, into {self.out}")
        bar = steps_progress("train", left) if self.progress else contextlib.nullcontext(lambda *_: None)
        note = _describe(self.curve[-1]) if self.curve else ""
        began = time.perf_counter() - self.seconds
        self.task.model.train()
        with _interruption() as interrupted, bar as advance:
            while self.step < self.config.steps:
                self._update()
                self.seconds = time.perf_counter() - began
                if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                    note = _describe(self._validate())
                    self.write_checkpoint()
                    self._say(f"step {self.step:,} of {self.config.steps:,}, {self.seconds:.0f} s, {note}")
                advance(1, note)
                if interrupted():
                    self.write_checkpoint()
                    raise KeyboardInterrupt
        best = max(self.curve, key=_choice)
        self._say(f"kept the model of step {best['step']:,}, {_describe(best)}")

    def _update(self) -> None:
        rate = self.config.learning_rate * min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            loss = self.task.loss(self.batches)
        self.optimizer.zero_grad()
        loss.backward()
        # The fused optimizer walks a gradient's memory in the order of its weight's.
        assert all(weight.grad is not None and weight.grad.is_contiguous() for weight in self.weights)
        nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        self.loss_sum += loss.item()
        self.loss_count += 1
        self._check_finite(self.loss_sum)

    def _validate(self) -> dict[str, Any]:
        """Measure the model, keep it if it is the best so far, and add an entry to the curve."""
        loss, skill = self.task.validate()
        self._check_finite(loss, *skill.values())
        entry = {
            "step": self.step,
            "train_loss": self.loss_sum / self.loss_count,
            "validation_loss": loss,
            "skill": {str(h): value for h, value in skill.items()},
            "seconds": round(self.seconds, 3),
        }
        if all(_choice(entry) > _choice(earlier) for earlier in self.curve):
            self.task.save(self.out)
        self.curve.append(entry)
        self.loss_sum, self.loss_count = 0.0, 0
        return entry

    def _check_finite(self, *values: float) -> None:
        if not all(map(math.isfinite, values)):
            raise TiplError(
                f"The loss is no longer finite at step {self.step:,}; give a lower --learning-rate and another --out."
            )

    def _say(self, line: str) -> None:
        if self.progress:
            console.print(f"train: {line}", markup=False)

    def write_checkpoint(self) -> None:
        """Write the checkpoint, and after it the curve, which is there to be read and not needed to go on."""
        state = self.optimizer.state_dict()["state"]
        tensors = {f"model.{name}": tensor for name, tensor in self.task.model.state_dict().items()}
        tensors |= {f"optimizer.{i}.{name}": value for i, values in state.items() for name, value in values.items()}
        tensors["random.batches"] = self.batches.get_state()
        tensors["random.dropout"] = torch.get_rng_state()
        progress = {
            "step": self.step,
            "precision": _name(self.precision),
            "seconds": self.seconds,
            "curve": self.curve,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
        }
        _Checkpoint(self.facts, progress, tensors).write(self.out)
        summary = {"version": VERSION, **self.facts, "precision": progress["precision"], "curve": self.curve}
        write_file(self.out / CURVE_FILE, (json.dumps(summary, indent=2) + "\n").encode())

    def restore(self, checkpoint: _Checkpoint) -> None:
        """Go on where the checkpoint was written, in its precision even where another would be faster."""
        tensors, progress = checkpoint.tensors, checkpoint.progress
        self.task.model.load_state_dict(_below("model.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.batches.set_state(tensors["random.batches"])
        torch.set_rng_state(tensors["random.dropout"])
        self.precision = getattr(torch, progress["precision"])
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.loss_sum, self.loss_count = progress["loss_sum"], progress["loss_count"]
        self.curve = progress["curve"]


def fast_precision() -> torch.dtype:
    """bfloat16 where the processor multiplies it itself (1.5 times the steps a second), else float32."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; a second one interrupts at once, as it always does."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread is told of signals
        return
    previous = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _choice(entry: Mapping[str, Any]) -> float:
    """What the kept model is the best in."""
    return entry["skill"][str(SKILL_HORIZONS[-1])]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(entry: Mapping[str, Any]) -> str:
    skills = ", ".join(f"{value:+.3f} at h={h}" for h, value in entry["skill"].items())
    return f"loss {entry['train_loss']:.5f}, validation {entry['validation_loss']:.5f}, skill {skills}"


def _check_codes(sequences: Sequence[np.ndarray], kind: str, shortest: int) -> None:
    if not sequences:
        raise TiplError(f"There is no {kind} trial; collect more trials.")
    for number, codes in enumerate(sequences):
        which = f"{kind} trial {number} (of {len(sequences)}, from 0)"
        if codes.ndim != 2:
            raise TiplError(f"The codes of {which} have shape {codes.shape}; give [T, d].")
        if len(codes) < shortest:
            raise TiplError(f"There are {len(codes)} snapshots in {which}; at least {shortest} are needed.")
        if not np.isfinite(codes).all():
            raise TiplError(f"The codes of {which} are not all finite; verify the data set and fit the SVD again.")


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    before = [
        f"{name} {then['config'].get(name)}"
        for name, value in now["config"].items()
        if then["config"].get(name) != value
    ]
    if before:
        raise TiplError(
            f"{out} was begun with other settings ({', '.join(before)}); resume with those, or give another --out."
        )
    if then["codes"]["sha256"] != now["codes"]["sha256"]:
        raise TiplError(f"{out} was begun on other codes; resume with those, or give another --out.")


def _digest(sequences: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for codes in sequences:
        digest.update(str(codes.shape).encode())
        digest.update(np.ascontiguousarray(codes, np.float32).tobytes())
    return digest.hexdigest()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensor(codes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(codes, np.float32))
