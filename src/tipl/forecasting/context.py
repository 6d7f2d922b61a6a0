"""An autoregression over tokens: a causal model's displacement and gradients on the last rollouts.

In: a live run's history with its context tokens (rl/context.py).  Out: forecast weights.

φ̃_{t+h} − φ_t = Σ_j a_{h,j} x_j over a few vectors x: what the model `zoo` forecasts at h, and a token for each span of
the last rollouts, and Adam's. One number for all weights of a vector, the same in every environment:
`studies/direction.py` has fitted them by ridge regression over runs that the file names, one and ten iterations ahead.
Between these they are interpolated, beyond they stay.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tipl.files import read_json
from tipl.forecasting.forecaster import Forecaster, asked, context_tokens
from tipl.forecasting.shipped import PRETRAINED
from tipl.forecasting.trained import CausalForecaster
from tipl.store import History

CONTEXT = "context"
"""The forecaster's name."""
COEFFICIENTS = PRETRAINED / "context.json"


def context_model() -> str:
    """Return the name of the model that it builds on."""
    return read_json(COEFFICIENTS)["model"]


def fitted_beginnings() -> frozenset[str]:
    """Return how the runs begin that the coefficients were fitted on."""
    return frozenset(read_json(COEFFICIENTS)["beginnings"])


class ContextSum(Forecaster):
    """A causal model and gradients on past rollouts at the weights of now, added up.

    Log standard deviations are forecast by the model alone.
    """

    name, label, is_model, takes_tokens = CONTEXT, "causal TIPL and gradients on past rollouts", True, True
    context = CausalForecaster.context

    def __init__(
        self, shapes: Sequence[Sequence[int]] | None, snapshots_per_iteration: int, fitted: Any = None
    ) -> None:
        """
        Args:
            shapes: of the tensors that lie end to end in the weights.
            snapshots_per_iteration: of the live run.
            fitted: `model`, a name; `horizons` in iterations; a row of `coefficients` for each, the model's first.
                Default: as the package has them.

        Raises:
            TiplError: there are no shapes.
        """
        fitted = read_json(COEFFICIENTS) if fitted is None else fitted
        self._model = CausalForecaster.from_pretrained(fitted["model"], shapes)
        self._network = _network(shapes or ())
        self._horizons = snapshots_per_iteration * np.array(fitted["horizons"])
        self._coefficients = np.array(fitted["coefficients"], np.float64)

    def coefficients(self, horizons: Sequence[int]) -> np.ndarray:
        """Return a [H, 1 + J] at horizons in snapshots."""
        return np.stack([np.interp(horizons, self._horizons, each) for each in self._coefficients.T], axis=1)

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        horizons = asked(histories, horizons)
        a_HJ = self.coefficients(horizons).astype(np.float32)
        made = self._model.forecast(histories, horizons)
        for out_HP, history in zip(made, histories, strict=True):
            tokens = context_tokens(self, history, a_HJ.shape[1] - 1)
            mine, now = np.flatnonzero(self._network), history.weights[-1]
            mine = mine[mine < tokens.shape[1]]  # weights after these, a critic's, have no tokens
            added = a_HJ[:, 1:] @ tokens[:, mine]
            out_HP[:, mine] = now[mine] + a_HJ[:, :1] * (out_HP[:, mine] - now[mine]) + added
        return made


def _network(shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """[P] bool: all but log standard deviations, which are a row that no single bias follows."""
    following = [*shapes[1:], ()]
    is_row = [len(shape) == 2 and shape[0] == 1 for shape in shapes]
    kept = [not row or tuple(after) == (1,) for row, after in zip(is_row, following, strict=True)]
    return np.repeat(kept, [math.prod(shape) for shape in shapes])
