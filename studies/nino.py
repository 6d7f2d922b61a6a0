"""NiNo's pretrained networks (Knyazev et al., ICLR 2025, arXiv 2409.04434) as forecasters of our protocol.

In: a checkpoint of github.com/SamsungSAILMontreal/nino, the tensors of a policy.  Out: forecasters, one a spacing.

Both networks see five past states of a network, here `spacing` snapshots apart, and forecast 1 to 40 such steps at
once. WNN+ (`nino_mlp.pt`) looks at each weight alone and is written here. NiNo (`nino_no_posw.pt`) is a graph network:
it is imported from a checkout of their repository, and needs torch_geometric, scipy and psutil.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster
from tipl.store import History
from tipl.store.spec import ParamSpec

SPACINGS = (1, 5, 20)
STATES, FURTHEST = 5, 40
FULLY_CONNECTED, OTHER = 1, 2  # their types of edges, of the kinds of tensors that a policy has
_EPSILON = 1e-6
_AT_ONCE = 1 << 16  # weights in one pass of WNN+, to bound its memory

Network = Callable[[Tensor], Tensor]
"""Scaled states [P, 5], oldest first, to scaled displacements from the last one [P, 40]."""


class Nowcast(Forecaster):
    """A pretrained network that sees states `spacing` snapshots apart.

    A horizon that is no multiple of the spacing is interpolated linearly between the two steps beside it; the weights
    now are step 0. Beyond 40 steps stands the forecast of the 40th.
    """

    is_model = True

    def __init__(self, network: Network, spec: ParamSpec, spacing: int, kind: str) -> None:
        self.name, self.label = f"{kind}-{spacing}", f"{kind}, pretrained, states {spacing} apart"
        self.context = (STATES - 1) * spacing + 1
        self._network, self._sizes, self._spacing = network, torch.tensor(spec.sizes), spacing

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        steps = np.minimum(np.array(horizons) / self._spacing, FURTHEST)
        before, part = np.floor(steps).astype(int), torch.from_numpy(steps % 1).float()
        after = np.minimum(before + 1, FURTHEST)
        out = []
        for history in histories:
            rows = np.arange(-STATES + 1, 1) * self._spacing + len(history.weights) - 1
            states_P5 = torch.from_numpy(history.weights[np.maximum(rows, 0)].T.astype(np.float32))  # φ_0 stood still
            mean_P1, std_P1 = scales(states_P5, self._sizes)
            scaled_P5 = (states_P5 - mean_P1) / (std_P1 + _EPSILON)
            with torch.no_grad():
                ahead_PK = (scaled_P5[:, -1:] + self._network(scaled_P5)) * std_P1 + mean_P1
            ahead_PK = torch.cat([states_P5[:, -1:], ahead_PK], dim=1)
            out.append(torch.lerp(ahead_PK[:, before], ahead_PK[:, after], part).T.numpy())
        return np.stack(out)


def scales(states_PS: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each tensor over its weights and states, at each weight [P, 1]."""
    parts = [(part.mean(), part.std()) for part in states_PS.split(sizes.tolist())]
    mean_P, std_P = (torch.stack(each).repeat_interleave(sizes) for each in zip(*parts, strict=True))
    return mean_P[:, None], std_P[:, None]


def wnn(parameters: dict[str, Tensor], spec: ParamSpec) -> Network:
    """Return WNN+: five states of one weight to features, plus those of its edge's type, through four layers."""

    def layer(name: str) -> nn.Linear:
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        made.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        return made

    project, (first, *others) = layer("edge_proj.fc.0"), [layer(f"edge_mlp.fc.{i}") for i in (0, 2, 4, 6)]
    network = nn.Sequential(first, *(each for other in others for each in (nn.SiLU(), other)))
    kinds = [FULLY_CONNECTED if _is_layer(name, shape) else OTHER for name, shape in _tensors(spec)]
    types_P = torch.tensor(kinds).repeat_interleave(torch.tensor(spec.sizes))
    embedding = parameters["layer_embed.weight"]

    def forward(scaled_P5: Tensor) -> Tensor:
        parts = zip(scaled_P5.split(_AT_ONCE), types_P.split(_AT_ONCE), strict=True)
        return torch.cat([network(project(states) + embedding[types]) for states, types in parts])

    return forward


def graph_network(checkpoint: dict[str, Any], spec: ParamSpec, code: Path) -> Network:
    """Return their graph network on their graph of a multilayer perceptron; `code` is the folder of their repository.

    A log standard deviation stands as a second bias of the output's neurons. The eigenvectors that are the neurons'
    features have arbitrary signs, drawn once. In training mode the network gives all steps in one pass; it has no
    dropout, so that the mode changes no value.

    Raises:
        TiplError: the layers are no chain, which alone their graph can be made of, or the code cannot be used.
    """
    layers = [shape for name, shape in _tensors(spec) if _is_layer(name, shape)]
    if any(n_out != n_in for (n_out, _), (_, n_in) in pairwise(layers)):
        raise TiplError(
            "This network is no chain of layers, of which NiNo's graph is made; leave the graph network out here."
        )
    model_class, graph_class = _from(code, "optim.model").NiNoModel, _from(code, "graph.graph").NeuralGraph
    eigenvectors = importlib.import_module("torch_geometric.transforms").AddLaplacianEigenvectorPE
    eigenvectors.SPARSE_THRESHOLD = sys.maxsize  # its sparse solver begins at random, and no two calls agree
    network = model_class(**checkpoint["model_args"])
    network.load_state_dict(checkpoint["state_dict"])
    named = [
        (f"{i}.{'weight' if _is_layer(name, shape) else 'bias'}",
         torch.Size(shape if _is_layer(name, shape) else [int(np.prod(shape))]))
        for i, (name, shape) in enumerate(_tensors(spec))
    ]  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = graph_class(named, lpe=network.lpe, max_feat_size=network.max_feat_size)

    def forward(scaled_P5: Tensor) -> Tensor:
        graph.set_edge_attr(scaled_P5)
        made = network(graph.pyg_graph.clone()).edge_attr
        ahead = [graph.to_vector(made, edge_attr_dim=step) for step in range(FURTHEST)]
        return torch.stack(ahead, dim=1) - scaled_P5[:, -1:]

    return forward


def _tensors(spec: ParamSpec) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(spec.names, spec.shapes, strict=True))


def _is_layer(name: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and name.endswith(".weight")


def _from(code: Path, module: str) -> ModuleType:
    """A module of theirs, without what their packages import beside it (transformers, torchvision)."""
    folder, name = module.split(".")
    package = sys.modules.setdefault(f"_nino_{folder}", ModuleType(f"_nino_{folder}"))
    package.__path__ = [str(code / folder)]
    try:
        return importlib.import_module(f"{package.__name__}.{name}")
    except ImportError as error:
        raise TiplError(f"{code} cannot be used ({error}); give a checkout of SamsungSAILMontreal/nino, and "
                        "pip install torch_geometric scipy psutil.") from None  # fmt: skip


def nowcasts(
    checkpoint: Path, spec: ParamSpec, code: Path | None = None, spacings: Sequence[int] = SPACINGS
) -> list[Forecaster]:
    """Return the checkpoint's forecasters for policies of these tensors: `wnn-5`, or `nino-5`.

    Raises:
        TiplError: the file is no checkpoint of theirs, or a graph network's code cannot be used.
    """
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
        arguments, parameters = found["model_args"], found["state_dict"]
    except Exception as error:  # whatever a file that is none may raise
        raise TiplError(f"{checkpoint} is no checkpoint of NiNo ({type(error).__name__}); give another.") from None
    if arguments.get("gnn", True):
        if code is None:
            raise TiplError(f"{checkpoint} is a graph network; give the folder of NiNo's repository too.")
        network, kind = graph_network(found, spec, code), "nino"
    else:
        network, kind = wnn(parameters, spec), "wnn"
    return [Nowcast(network, spec, spacing, kind) for spacing in spacings]
