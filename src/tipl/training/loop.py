"""The training loop with its checkpoint: a model is known here only as a `Task`.

In: a Task, TrainConfig.  Out: in a folder the best model, the last checkpoint and the curve, and in LAST below it the
last model.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from tipl.bundle import read_bundle, write_bundle
from tipl.config.presets import Precision, TrainConfig
from tipl.errors import TiplError
from tipl.files import require
from tipl.models import TRAINING_FILE, digest, read_training, write_training
from tipl.models.files import SavedModel
from tipl.progress import console, steps_progress
from tipl.shapes import Number, OneOf, Whole
from tipl.training.cuda_graph import Recorded
from tipl.training.devices import ALONE, Worker

CHECKPOINT_FILE = "checkpoint.safetensors"
CURVE_FILE = TRAINING_FILE
LAST = "last"
"""The folder, below the best model's, of the model as the last step left it."""
VERSION = 2

SKILL_HORIZONS = (1, 10)
"""Codes ahead at which validation skill is measured. The model with the best skill at the last of them is kept."""

CHOSEN_BY = f"best validation skill at h = {SKILL_HORIZONS[-1]}"
"""How the kept model was chosen, in words."""

SCALARS_EVERY = 100
"""Steps between two points of the curves that need no validation."""

_CHECKPOINT = {
    "facts": {"config": dict, "codes": {"sha256": str}},
    "progress": {
        "step": Whole(),
        "precision": OneOf("float32", "bfloat16"),
        "seconds": Number(0),
        "curve": [dict],
        "loss_sum": Number(),
        "loss_count": Whole(),
    },
}

Write = Callable[[str, float, int], None]
"""One more point of a curve: its name, the value and the step; `collection.tracking` makes one."""


class Validation(NamedTuple):
    """How good a model is on the validation trials."""

    loss: float
    skill: dict[int, float]
    """By horizon: 1 − summed squared error / that of persistence. The last horizon chooses the model."""


class Task(Protocol):
    """A model and what it learns from: all that the training loop knows of either."""

    one_shape: ClassVar[bool]
    """Whether every batch has the same shapes, as a recording of a step needs."""

    @property
    def model(self) -> SavedModel:
        """What learns."""
        ...

    def draw(self, batches: torch.Generator) -> Tensor:
        """Return a random batch of `batches`, as numbers [batch_size] of what there is to learn from, on the CPU."""
        ...

    def loss(self, index_B: Tensor) -> Tensor:
        """Return this process's share [] of the loss of the batch index_B; the shares add up to the loss."""
        ...

    @property
    def unit(self) -> float:
        """What a loss of 1 is, in the task's own measure."""
        ...

    def validate(self) -> Validation:
        """Return how good the model is on the validation trials."""
        ...

    def save(self, out: Path) -> None:
        """Write the model into the folder `out`."""
        ...


class Checkpoint(NamedTuple):
    """All that the rest of a training depends on: one safetensors file, what is no tensor as JSON in its header."""

    facts: dict[str, Any]
    """The settings and the data: the same in every checkpoint of a training."""
    progress: dict[str, Any]
    """Step, precision, seconds, curve, and the sum of losses since the last validation."""
    tensors: dict[str, Tensor]
    """model.NAME, optimizer.INDEX.NAME and the states of the generators: random.batches, random.dropout and, of a
    training on it, random.dropout_cuda."""

    def write(self, out: Path) -> None:
        told = {"version": VERSION, "facts": self.facts, "progress": self.progress}
        write_bundle(out / CHECKPOINT_FILE, self.tensors, told, safetensors.torch)

    @classmethod
    def read(cls, out: Path) -> "Checkpoint":
        """
        Raises:
            Damaged: it was cut short, has other bits, or is no checkpoint.
            TiplError: it is of another version, or cannot be read.
        """
        path, advice = out / CHECKPOINT_FILE, f"remove {out} and train again, or give another --out"
        tensors, told = read_bundle(path, {"version": Whole()}, safetensors.torch, advice)
        if told["version"] != VERSION:
            raise TiplError(f"{path} is of version {told['version']}, this program reads {VERSION}; {advice}.")
        require(told, _CHECKPOINT, str(path), advice)
        return cls(told["facts"], told["progress"], tensors)


class Training:
    """The loop: AdamW on a task, warm-up, clipping, validation, checkpoints."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        out: Path,
        facts: dict[str, Any],
        progress: bool,
        write: Write,
        worker: Worker = ALONE,
    ) -> None:
        self.task, self.config, self.out, self.facts = task, config, out, facts
        self.progress, self.write, self.worker = progress, write, worker
        self.weights = list(task.model.parameters())
        on_gpu = worker.device.type == "cuda"
        # A recording replays the rate that it finds in the device's memory.
        rate = torch.tensor(config.learning_rate, device=worker.device) if on_gpu else config.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=rate, weight_decay=config.weight_decay, fused=True, capturable=on_gpu
        )
        recorded = on_gpu and worker.ranks == 1 and task.one_shape
        self.learn: Callable[[Tensor], Tensor] = Recorded(self._learn, worker.device) if recorded else self._learn
        self.batches = torch.Generator().manual_seed(config.seed)
        self.precision = _precision(config.precision, worker.device)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, Any]] = []
        self.loss_sum, self.loss_count = torch.zeros((), dtype=torch.float64, device=worker.device), 0
        self.interrupted: Callable[[], bool] = lambda: False
        self.stops = False
        """Whether any process was interrupted: all stop after the same step."""

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
        with _interruption() as self.interrupted, bar as advance:
            while self.step < self.config.steps:
                loss = self._update()
                self.seconds = time.perf_counter() - began
                if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                    entry = self._validate()
                    note = _describe(entry)
                    self.write_checkpoint()
                    self._plot(entry)
                    self._say(f"step {self.step:,} of {self.config.steps:,}, {self.seconds:.0f} s, {note}")
                if self.step % SCALARS_EVERY == 0:
                    self.write("loss/batch", loss.item(), self.step)
                    self.write("learning_rate", float(self.optimizer.param_groups[0]["lr"]), self.step)
                advance(1, note)
                if self.stops or (self.worker.ranks == 1 and self.interrupted()):
                    self.write_checkpoint()
                    raise KeyboardInterrupt
        self._say(f"the model of the last step, {self.step:,}, is in {self.out / LAST}")
        best = max(self.curve, key=_choice)
        self._say(f"kept the model of step {best['step']:,}: {CHOSEN_BY}; {_describe(best)}")

    def _update(self) -> Tensor:
        """One step; returns the loss of its batch, which on a GPU need not be known yet."""
        rate = self.config.learning_rate * min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        if self.config.cosine:
            rate *= (1 + math.cos(math.pi * self.step / self.config.steps)) / 2
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        loss = self.learn(self.task.draw(self.batches))
        self.step += 1
        self.loss_sum += loss
        self.loss_count += 1
        if self.worker.device.type == "cpu" or self.step % SCALARS_EVERY == 0:  # a GPU is not waited for at every step
            self._check_finite(self.loss_sum.item())
        return loss

    def _learn(self, index_B: Tensor) -> Tensor:
        """Gradients of a batch's loss, and AdamW's step; returns the loss."""
        with torch.autocast(self.worker.device.type, self.precision, enabled=self.precision != torch.float32):
            loss = self.task.loss(index_B)
        self.optimizer.zero_grad()
        loss.backward()
        # The fused optimizer walks a gradient's memory in the order of its weight's.
        gradients = [weight.grad for weight in self.weights if weight.grad is not None and weight.grad.is_contiguous()]
        assert len(gradients) == len(self.weights)
        loss = loss.detach()
        if self.worker.ranks > 1:
            loss, stops = self.worker.sum_up(gradients, loss, loss.new_tensor(float(self.interrupted())))
            self.stops = stops.item() > 0
        nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        self.optimizer.step()
        return loss

    def _validate(self) -> dict[str, Any]:
        """Measure the model, keep it if it is the best so far, and add an entry to the curve."""
        loss, skill = self.task.validate()
        summed = self.loss_sum.item()
        self._check_finite(summed, loss, *skill.values())
        entry = {
            "step": self.step,
            "train_loss": summed / self.loss_count,
            "validation_loss": loss,
            "skill": {str(h): value for h, value in skill.items()},
            "seconds": round(self.seconds, 3),
        }
        if self.worker.is_first and all(_choice(entry) > _choice(earlier) for earlier in self.curve):
            self._save(self.out)
        self.curve.append(entry)
        self.loss_sum.zero_()
        self.loss_count = 0
        return entry

    def _plot(self, entry: Mapping[str, Any]) -> None:
        """The newest entry of the curve as points of curves."""
        began = {"step": 0, "seconds": 0.0} if len(self.curve) == 1 else self.curve[-2]
        rate = (entry["step"] - began["step"]) / max(entry["seconds"] - began["seconds"], 1e-3)
        points = {"loss/train": entry["train_loss"], "loss/validation": entry["validation_loss"]}
        points |= {f"skill/{h}_ahead": value for h, value in entry["skill"].items()} | {"steps_per_second": rate}
        for name, value in points.items():
            self.write(name, value, entry["step"])

    def _check_finite(self, *values: float) -> None:
        if not all(map(math.isfinite, values)):
            raise TiplError(
                f"The loss is no longer finite at step {self.step:,}; give a lower --learning-rate and another --out."
            )

    def _say(self, line: str) -> None:
        if self.progress:
            console.print(f"train: {line}", markup=False)

    def _identity(self, folder: Path) -> str:
        """What a model of this training is told by; a training that is given more steps is still the same."""
        settings = {name: value for name, value in self.facts["config"].items() if name != "steps"}
        return digest([settings, self.facts["codes"]["sha256"], folder.relative_to(self.out).name])

    def _save(self, folder: Path) -> None:
        self.task.model.identity = self._identity(folder)
        self.task.save(folder)

    def write_checkpoint(self) -> None:
        """Write the checkpoint, and after it the curve, which is there to be read and not needed to go on."""
        if not self.worker.is_first:
            return
        if self.step > 0:
            self._save(self.out / LAST)
        state = self.optimizer.state_dict()["state"]
        tensors = {f"model.{name}": tensor for name, tensor in self.task.model.state_dict().items()}
        tensors |= {f"optimizer.{i}.{name}": value for i, values in state.items() for name, value in values.items()}
        tensors["random.batches"] = self.batches.get_state()
        tensors["random.dropout"] = torch.get_rng_state()
        if self.worker.device.type == "cuda":
            tensors["random.dropout_cuda"] = torch.cuda.get_rng_state()
        progress = {
            "step": self.step,
            "precision": _name(self.precision),
            "seconds": self.seconds,
            "curve": self.curve,
            "loss_sum": self.loss_sum.item(),
            "loss_count": self.loss_count,
        }
        Checkpoint(self.facts, progress, tensors).write(self.out)
        self.write_curves()

    def write_curves(self) -> None:
        """What is told of the best model, beside it, and of the last one."""
        best = max(self.curve, key=_choice)["step"] if self.curve else None
        kept = {self.out: {"step": best, "by": CHOSEN_BY}, self.out / LAST: {"step": self.step, "by": "last step"}}
        for folder, which in kept.items():
            if which["step"]:
                told = {"precision": _name(self.precision), "loss_unit": self.task.unit, "kept": which}
                write_training(folder, {"identity": self._identity(folder), **self.facts, **told, "curve": self.curve})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was written, on a CPU in its precision even where another would be faster."""
        tensors, progress = checkpoint.tensors, checkpoint.progress
        self.task.model.load_state_dict(_below("model.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.batches.set_state(tensors["random.batches"])
        torch.set_rng_state(tensors["random.dropout"])
        if self.worker.device.type == "cuda":
            if "random.dropout_cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.dropout_cuda"])
        else:
            self.precision = getattr(torch, progress["precision"])
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.loss_sum.fill_(progress["loss_sum"])
        self.loss_count = progress["loss_count"]
        self.curve = progress["curve"]
        if self.worker.is_first:
            self.write_curves()  # a crash may have come between the checkpoint and these


def kept(out: Path) -> str:
    """Which model of a training `out` holds, in words."""
    which = read_training(out)["kept"]
    return f"the model of step {which['step']:,}: {which['by']}"


def _precision(asked: Precision, device: torch.device) -> torch.dtype:
    if asked == "fast":
        return torch.bfloat16 if device.type == "cuda" else fast_precision()
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


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


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
