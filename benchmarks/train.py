"""Training speed at the paper's settings, against the way the Decision Transformer trains.

In: random codes of the size of the quick experiment's.  Out: OUT, JSON: segments a second of both and their ratio.

The other side is the same architecture built on `transformers`' GPT2Model, its position embeddings zeroed and an
embedding of the timestep added; a batch is put together segment by segment in Python: draw a trial and an origin,
slice, pad on the left, and join. Both have AdamW, a linear warm-up and clipping. Rounds of the two alternate in one
process on one thread; the ratio is the median over rounds of each round's own. Ours trains as with --precision fast, in
bfloat16 where the processor multiplies it; it is timed in float32, the default of `tipl train`, too. With --device cuda
both models are on the GPU, and ours is also timed with its kernels launched one by one instead of replayed from a
recording.

`transformers` is needed here and nowhere else: install it in an environment of its own.

    OMP_NUM_THREADS=1 python benchmarks/train.py --out results/train/benchmark.json
    OMP_NUM_THREADS=1 python benchmarks/train.py --device cuda --out results/train/benchmark-gpu.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from tipl.config.presets import TrainConfig
from tipl.training import NextCode, Worker
from tipl.training.loop import Training

TRIALS, SNAPSHOTS, DIM = 40, 1951, 32
CONFIG = TrainConfig(precision="fast")


class OnGPT2(nn.Module):
    """The paper's model on `transformers`."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width = config.width
        shape = transformers.GPT2Config(
            vocab_size=1, n_positions=config.context, n_embd=width, n_layer=config.num_layers, n_head=config.num_heads,
            n_inner=4 * width, activation_function="relu", resid_pdrop=config.dropout, embd_pdrop=config.dropout,
            attn_pdrop=config.dropout, use_cache=False,
        )  # fmt: skip
        self.trunk = transformers.GPT2Model(shape)
        self.trunk.wpe.weight.requires_grad_(False).zero_()
        self.embed_code, self.embed_time = nn.Linear(DIM, width), nn.Embedding(SNAPSHOTS - 1, width)
        self.norm_embedding, self.head = nn.LayerNorm(width), nn.Linear(width, DIM)

    def forward(self, codes_BKD: Tensor, timesteps_BK: Tensor, mask_BK: Tensor) -> Tensor:
        x_BKC = self.norm_embedding(self.embed_code(codes_BKD) + self.embed_time(timesteps_BK))
        return self.head(self.trunk(inputs_embeds=x_BKC, attention_mask=mask_BK).last_hidden_state)


class SegmentBySegment:
    """Its training, with batches joined in a Python loop."""

    def __init__(self, trials: list[np.ndarray], config: TrainConfig, device: str) -> None:
        self.trials, self.config, self.rng, self.device = trials, config, np.random.default_rng(config.seed), device
        rows = np.concatenate(trials)
        self.mean_D, self.std_D = rows.mean(axis=0), rows.std(axis=0)
        self.model = OnGPT2(config).train().to(device)
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        warm = config.warmup_steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min((step + 1) / warm, 1))

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        K = self.config.context
        seen, targets, times, masks = [], [], [], []
        for _ in range(self.config.batch_size):
            trial = self.trials[self.rng.integers(len(self.trials))]
            origin = int(self.rng.integers(len(trial) - 1))
            first = max(0, origin + 1 - K)
            length = origin + 1 - first
            before = np.zeros((1, K - length, DIM))
            code = (trial[first : origin + 2] - self.mean_D) / self.std_D
            seen.append(np.concatenate([before, code[None, :-1]], axis=1))
            targets.append(np.concatenate([before, code[None, 1:]], axis=1))
            times.append(np.concatenate([np.zeros((1, K - length)), np.arange(first, origin + 1)[None]], axis=1))
            masks.append(np.concatenate([np.zeros((1, K - length)), np.ones((1, length))], axis=1))
        seen, targets = (torch.from_numpy(np.concatenate(each)).float() for each in (seen, targets))
        times, masks = (torch.from_numpy(np.concatenate(each)).long() for each in (times, masks))
        return seen, targets, times, masks

    def step(self) -> None:
        codes_BKD, targets_BKD, times_BK, mask_BK = (each.to(self.device) for each in self.batch())
        predicted = self.model(codes_BKD, times_BK, mask_BK)[mask_BK > 0]
        loss = torch.mean((predicted - targets_BKD[mask_BK > 0]) ** 2)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.config.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100, help="of each side in a round")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    trials = [rng.standard_normal((SNAPSHOTS, DIM)).cumsum(axis=0).astype(np.float32) for _ in range(TRIALS + 2)]

    def training(out: str) -> Training:
        worker = Worker.of(asked.device, CONFIG.batch_size)
        task = NextCode(trials[:TRIALS], trials[TRIALS:], [np.ones(DIM)] * (TRIALS + 2), CONFIG, {}, worker)
        task.model.train()
        return Training(task, CONFIG, Path(out), {}, False, lambda name, value, step: None, worker)

    with tempfile.TemporaryDirectory() as scratch:
        ours, slow = training(scratch), training(scratch)
        slow.precision = torch.float32
        other = SegmentBySegment(trials[:TRIALS], CONFIG, asked.device)
        sides: dict[str, Callable[[], object]] = {
            "ours": ours._update,
            "other": other.step,
            "ours, float32": slow._update,
        }
        if asked.device == "cuda":
            launched = training(scratch)
            launched.learn = launched._learn
            sides["ours, launched one by one"] = launched._update
        rates: dict[str, list[float]] = {name: [] for name in sides}
        load = os.getloadavg()[0]
        for number in range(asked.rounds + 1):
            for name, step in sides.items():
                began = time.perf_counter()
                for _ in range(asked.steps):
                    step()
                if asked.device == "cuda":
                    torch.cuda.synchronize()
                rate = CONFIG.batch_size * asked.steps / (time.perf_counter() - began)
                if number:  # the first round warms up
                    rates[name].append(rate)
    ratios, slow_ratios = (
        [one / other for one, other in zip(rates[name], rates["other"], strict=True)]
        for name in ("ours", "ours, float32")
    )
    found = {
        "segments_per_second": {name: round(statistics.median(each)) for name, each in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_by_round": [round(ratio, 3) for ratio in ratios],
        "ratio_in_float32": round(statistics.median(slow_ratios), 3),
        "precision": {"ours": str(ours.precision).removeprefix("torch."), "other": "float32"},
        "parameters": {
            "ours": sum(weight.numel() for weight in ours.weights),
            "other": sum(weight.numel() for weight in other.weights if weight is not other.model.trunk.wte.weight),
        },
        "rounds": asked.rounds,
        "steps": asked.steps,
        "threads": 1,
        "load_before": round(load, 2),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {
            "processor": processor(), "cores": os.cpu_count(),
            **({"gpu": torch.cuda.get_device_name()} if asked.device == "cuda" else {}),
        },
    }  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
