"""What bfloat16 does to the gradient of queries and keys as their weights grow.

In: a store, its codes, and a model over them that `tipl train --model paper` made.  Out: a table, and OUT as JSON.

The weights of the queries and keys of one block are multiplied by a factor. On the same batches, without dropout, their
gradient is computed in float32 and in bfloat16. `error` is the length of the difference over that of the float32
gradient: at 1 what AdamW is given is as much rounding as gradient.

    python benchmarks/precision.py STORE --codes CODES --model MODEL --out OUT.json
"""

import argparse
import json
from pathlib import Path

import torch

from tipl.config.presets import TrainConfig
from tipl.models import load, read_training
from tipl.representation import Codes
from tipl.store import Store
from tipl.training import NextCode

FACTORS = (1, 4, 16, 40)
BATCHES = 5


def gradient(task: NextCode, weight: torch.Tensor, index_B: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """Of the loss of a batch by the rows of queries and keys."""
    task.model.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = task.loss(index_B)
    loss.backward()
    assert weight.grad is not None
    return weight.grad[: 2 * weight.shape[1]].clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--block", type=int, default=1, help="[1]")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    split, codes = Store.open(asked.store).split(), Codes.open(asked.codes)
    settings = read_training(asked.model)["config"] | {"dropout": 0.0, "batch_size": 32}
    task = NextCode(
        [codes.codes(seed) for seed in split.train],
        [codes.codes(seed) for seed in split.validation],
        [codes.basis(seed).scale_D for seed in (*split.train, *split.validation)],
        TrainConfig(**settings),
        {},
    )
    state, found = load(asked.model).state_dict(), []
    for factor in FACTORS:
        task.model.load_state_dict(state)
        weight = task.model.get_parameter(f"blocks.{asked.block}.attention.qkv.weight")
        with torch.no_grad():
            weight[: 2 * weight.shape[1]] *= factor
        batches, lengths, errors = torch.Generator().manual_seed(0), [], []
        for _ in range(BATCHES):
            index_B = task.draw(batches)
            exact, rounded = (gradient(task, weight, index_B, each) for each in (torch.float32, torch.bfloat16))
            lengths.append(exact.norm().item())
            errors.append(((rounded - exact).norm() / exact.norm()).item())
        rms = weight.detach()[: 2 * weight.shape[1]].square().mean().sqrt().item()
        entry = {"factor": factor, "rms": rms, "gradient": sum(lengths) / BATCHES, "error": sum(errors) / BATCHES}
        found.append(entry)
        print("  ".join(f"{name} {value:.3g}" for name, value in entry.items()), flush=True)
    asked.out.write_text(json.dumps({"loss": settings["loss"], "torch": torch.__version__, "found": found}, indent=1))


if __name__ == "__main__":
    main()
