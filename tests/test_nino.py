"""WNN+ as a forecaster gives what a loop over weights gives; no file that is no checkpoint is believed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tipl.errors import TiplError
from tipl.store import History
from tipl.store.spec import ParamSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
import nino  # pyright: ignore[reportMissingImports]

SPEC = ParamSpec(("actor.0.weight", "actor.0.bias", "actor_logstd"), ((2, 3), (2,), (1, 2)))
TENSORS = ((slice(0, 6), 1), (slice(6, 8), 2), (slice(8, 10), 2))  # with the type of their edges
SHAPES = {"layer_embed": (15, 4), "edge_proj.fc.0": (4, 5), "edge_mlp.fc.6": (40, 4)}
SHAPES |= {f"edge_mlp.fc.{i}": (4, 4) for i in (0, 2, 4)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of their shapes, four wide."""
    rng = torch.Generator().manual_seed(0)
    found = {f"{name}.weight": torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    found |= {f"{name}.bias": torch.randn(shape[:1], generator=rng) for name, shape in SHAPES.items() if "fc" in name}
    path = tmp_path_factory.mktemp("nino") / "wnn.pt"
    torch.save({"state_dict": found, "model_args": {"gnn": False, "hid": 4}}, path)
    return path


def naive(checkpoint: Path, states: np.ndarray, steps: int) -> np.ndarray:
    """Weight after weight: five states [5, P] to the weights so many steps ahead, in float64."""
    of = {k: v.double().numpy() for k, v in torch.load(checkpoint, weights_only=True)["state_dict"].items()}
    out = np.empty(states.shape[1])
    for tensor, kind in TENSORS:
        mean, std = states[:, tensor].mean(), states[:, tensor].std(ddof=1)
        for p in range(tensor.start, tensor.stop):
            scaled = (states[:, p] - mean) / (std + 1e-6)
            x = of["edge_proj.fc.0.weight"] @ scaled + of["edge_proj.fc.0.bias"] + of["layer_embed.weight"][kind]
            for i in (0, 2, 4, 6):
                x = of[f"edge_mlp.fc.{i}.weight"] @ x + of[f"edge_mlp.fc.{i}.bias"]
                x = x if i == 6 else x / (1 + np.exp(-x))
            out[p] = (scaled[-1] + x[steps - 1]) * std + mean
    return out


def test_a_forecast_is_that_of_a_loop_over_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nino, "_AT_ONCE", 4)
    weights = np.random.default_rng(1).normal(size=(40, 10)).astype(np.float32)
    five = nino.nowcasts(checkpoint, SPEC)[1]
    assert (five.name, five.context, five.causal, five.is_model) == ("wnn-5", 21, True, True)
    first, states = weights[0].astype(float), weights[39 - 20 :: 5].astype(float)
    late = five.forecast([History(0, 39, weights[-21:], 0)], [5, 1, 15, 13, 200, 400])[0]
    one, two, three, last = (naive(checkpoint, states, steps) for steps in (1, 2, 3, 40))
    between = 0.4 * two + 0.6 * three  # 13 snapshots are 2.6 steps
    wanted = [one, 0.8 * weights[39] + 0.2 * one, three, between, last, last]
    np.testing.assert_allclose(late, wanted, rtol=1e-4, atol=1e-4)
    early = five.forecast([History(0, 6, weights[:7], 0)], [5])[0]  # before φ_0 the run stood still
    np.testing.assert_allclose(
        early[0], naive(checkpoint, np.stack([first, first, first, weights[1], weights[6]]), 1), rtol=1e-4, atol=1e-4
    )


def test_what_cannot_be_used_is_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    graph = tmp_path / "graph.pt"
    torch.save({"state_dict": {}, "model_args": {}}, graph)
    two_heads = ParamSpec(("mean.weight", "log_std.weight"), ((2, 3), (2, 3)))
    for path, spec, code, why in (
        (Path(__file__), SPEC, None, "no checkpoint of NiNo"),
        (graph, SPEC, None, "the folder of NiNo's repository"),
        (graph, SPEC, tmp_path, "cannot be used"),
        (graph, two_heads, tmp_path, "no chain"),
    ):
        with pytest.raises(TiplError, match=why):
            nino.nowcasts(path, spec, code)
