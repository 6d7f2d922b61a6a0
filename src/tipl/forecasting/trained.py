"""Trained models as forecasters, and any forecaster stretched (baselines.py has the others).

In: a model's folder, histories.  Out: forecast weights at the asked horizons, and how far off the causal model expects
them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from tipl.checks import Place, Whole, checked_arguments
from tipl.config.presets import SVDConfig
from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster, asked, context_tokens, usable
from tipl.forecasting.shipped import SHIPPED, model_name, published_folder
from tipl.models import CausalTIPL, CodeModel, load, read_record, read_training
from tipl.models.causal import features
from tipl.representation import Basis, Codes, fit_svd
from tipl.representation.windows import HORIZONS, TOKENS, WINDOW, Windows, windows_of
from tipl.store import History, Store


def known_codes(codes: Codes, histories: Sequence[History]) -> dict[int, tuple[np.ndarray, Basis]]:
    """By trial the codes and the basis of the runs that are shown.

    Raises:
        TiplError: the codes are of another run of that number: its last snapshot has another code.
    """
    known = {trial: (codes.codes(trial), codes.basis(trial)) for trial in {history.trial for history in histories}}
    for history in {history.trial: history for history in histories}.values():
        codes_TD, basis = known[history.trial]
        now_1P = history.weights[-1:]
        same = history.origin < len(codes_TD) and now_1P.shape[1] == len(basis.mean_P)
        if same:
            expected_D, found_D = codes_TD[history.origin], basis.encode(now_1P)[0]
            same = bool(np.abs(found_D - expected_D).max() <= 1e-2 * np.abs(expected_D).max() + 1e-6)
        if not same:
            raise TiplError(
                f"Trial {history.trial} of {codes.store}, which the codes are of, has other weights at snapshot "
                f"{history.origin} than the run that is shown; fit the codes on the store that it comes from."
            )
    return known


class ModelForecaster(Forecaster):
    """A trained model over the codes of each trial's own temporal SVD, step after step.

    The `full` basis is made from the whole trial, so it has seen the future of every origin: not causal.
    """

    def __init__(self, model: CodeModel, codes: Codes, name: str) -> None:
        self.name, self.is_model = name, True
        self.basis = codes.name
        self.causal = not codes.look_ahead
        kind = f"{model.title}, residual" if model.config.residual else model.title
        self.label = f"{kind} ({self.basis} basis{': sees the future' if codes.look_ahead else ''})"
        self.context = 1  # of weights; its codes come from the basis
        self.codes = codes
        self._model = model

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        length, dim = self._model.config.context, self._model.config.dim
        codes = torch.zeros(len(histories), length, dim)
        times = torch.zeros(len(histories), length, dtype=torch.long)
        valid = torch.zeros(len(histories), length, dtype=torch.bool)
        assert self.codes is not None
        known = known_codes(self.codes, histories)
        for b, history in enumerate(histories):
            seen = np.arange(max(0, history.origin - length + 1), history.origin + 1)
            codes[b, -len(seen) :] = torch.from_numpy(known[history.trial][0][seen])
            times[b, -len(seen) :] = torch.from_numpy(seen)
            valid[b, -len(seen) :] = True
        ahead = self._model.rollout(codes, times, valid, max(horizons)).numpy()[:, [h - 1 for h in horizons]]
        decoded = [known[history.trial][1].decode(ahead[b]) for b, history in enumerate(histories)]
        return np.stack(decoded).astype(np.float32)


class CausalForecaster(Forecaster):
    """Causal TIPL: takes any policy, from its last 201 snapshots. How good it is hangs on what it learned from.

    Every tensor is forecast apart, as a weighted sum of the differences of its snapshots, and of context tokens where
    the model has learned from them.
    Horizons between those that the model was trained for are interpolated. Later ones than `furthest` get its
    displacement, which is no forecast of theirs: their expected error is NaN.
    """

    is_model = True
    context = WINDOW
    furthest = HORIZONS[-1]

    @checked_arguments
    def __init__(
        self, model: CausalTIPL, shapes: Sequence[Sequence[Whole]] | None = None, name: str = "causal"
    ) -> None:
        """
        Args:
            model: the network; it is set to evaluate.
            name: that reports and metrics.json call it by.
            shapes: of the tensors that lie end to end in the weights; [(P,)] for weights that are one vector.

        Raises:
            TiplError: there are none; a policy would silently be taken for one vector.
        """
        if shapes is None:
            raise TiplError(
                "A causal model forecasts every tensor of a policy apart; give `shapes`, of a stored trial "
                "trial.spec.shapes, or [(P,)] for P weights that are one vector."
            )
        self.name, self.label = name, model.title
        self._model, self._shapes = model.eval(), [tuple(shape) for shape in shapes]
        self._context = model.config.tokens - TOKENS
        self.takes_tokens = self._context > 0
        self._learned_per_iteration = _learned_per_iteration(model)

    @classmethod
    @checked_arguments
    def from_pretrained(
        cls,
        name_or_path: Place = SHIPPED,
        shapes: Sequence[Sequence[Whole]] | None = None,
        revision: str | None = None,
    ) -> Self:
        """Return the forecaster of a causal model: the package's own by its name, `causal`, a folder's, or one that was
        published.

        Args:
            name_or_path: that name; a folder that `train` wrote; or USER/NAME of what `tipl hub push` published, where
                there is no folder of that name, also as hf://USER/NAME.
            shapes: as above; of a stored trial `trial.spec.shapes`.
            revision: of what was published; default: what is shown.

        Raises:
            TiplError: there is no such model, it is of another kind, or `shapes` are missing.
        """
        folder = published_folder(name_or_path, revision)
        return cls(CausalTIPL.load(folder), shapes, name=model_name(folder))

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        return self.forecast_with_error(histories, horizons)[0]

    def forecast_with_error(
        self, histories: Sequence[History], horizons: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the forecast of B `histories` at H `horizons`, [B, H, P], and the error to expect.

        The error is how far from the forecast the model expects φ_{t+h}: root mean square [B, H].
        It is NaN where the model has nothing to go by: beyond `furthest`, and where nothing has moved yet.
        """
        horizons = asked(histories, horizons)
        out = np.empty((len(histories), len(horizons), histories[0].weights.shape[1]), np.float32)
        errors = np.empty((len(histories), len(horizons)))
        sizes = self._sizes(out.shape[2])
        for b, history in enumerate(histories):
            self._check_epoch_index(history)
            context = context_tokens(self, history, self._context) if self._context else None
            seen = history.weights[-WINDOW:].astype(np.float32, copy=False)
            tokens, windows = windows_of(seen, sizes, history.epoch_index, history.origin, context)
            out[b], errors[b] = self._from_window(tokens, seen[-1], windows, horizons)
        return out, errors

    @torch.no_grad()
    def _from_window(
        self, tokens_JP: np.ndarray, now_P: np.ndarray, windows: Windows, horizons: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The forecast [H, P] from a window's tokens, φ_t and the groups' windows, and its expected error [H]."""
        outlook = self._model(features(windows))
        a_GHJ = torch.from_numpy(_at(horizons, outlook.coefficients_BHJ.numpy()))
        out, start = torch.empty(len(horizons), len(now_P)), 0
        tokens, now = torch.from_numpy(tokens_JP), torch.from_numpy(now_P.copy())
        for g, size in enumerate(self._sizes(len(now_P))):
            mine = slice(start, start := start + size)
            torch.mm(a_GHJ[g], tokens[:, mine], out=out[:, mine]).add_(now[mine])
        square_GH = outlook.log_error_BH.exp().numpy() * np.array(HORIZONS) * windows.unit[:, None]
        known_H = (np.array(horizons) <= self.furthest) & windows.unit.any()
        return out.numpy(), np.where(known_H, np.sqrt(_at(horizons, square_GH).sum(axis=0)), np.nan)

    def _sizes(self, total: int) -> list[int]:
        sizes = [math.prod(shape) for shape in self._shapes]
        if sum(sizes) != total:
            raise TiplError(
                f"Tensors of the shapes {self._shapes} have {sum(sizes)} weights, this policy has {total}; give the "
                "shapes of its own tensors."
            )
        return sizes

    def _check_epoch_index(self, history: History) -> None:
        """Refuse an epoch index that cannot be in iterations as long as those that the model learned from."""
        count, index, origin = self._learned_per_iteration, history.epoch_index, history.origin
        unsaid = history.snapshots_per_iteration is None
        if unsaid and count and index >= 0 and origin and index != (origin - 1) % count:
            raise TiplError(
                f"Snapshot {origin} has epoch_index {(origin - 1) % count} in iterations of {count} snapshots, as this "
                f"model knows them, not {index}; take trial.history({origin}), or give the History its "
                "snapshots_per_iteration, or epoch_index -1 where it is not known."
            )


def _learned_per_iteration(model: CausalTIPL) -> int | None:
    """How many snapshots the iterations had that a model learned from; None where they had more than it tells apart.

    Places that were never seen have the coefficients of unknown ones.
    """
    seen = [not torch.equal(each, model.linear[-1]) for each in model.linear[:-1]]
    return None if all(seen) else seen.index(False)


def _at(horizons: Sequence[int], known: np.ndarray) -> np.ndarray:
    """Values [G, HORIZONS, …] at other horizons: linear between those and from 0 at h = 0, the last one after."""
    grid = np.array((0, *HORIZONS))
    padded = np.concatenate([np.zeros_like(known[:, :1]), known], axis=1)
    at = np.minimum(np.array(horizons), grid[-1])
    after = np.searchsorted(grid, at)
    share = ((grid[after] - at) / (grid[after] - grid[after - 1])).astype(known.dtype)
    share = share.reshape(-1, *[1] * (known.ndim - 2))
    return share * padded[:, after - 1] + (1 - share) * padded[:, after]


class Stretched(Forecaster):
    """Another forecaster's displacements from φ_t, times a factor.

    The forecast with the least expected error in weights is short where much is unknown; going on in its direction may
    give the better policy. In weights it is the worse one, and `forecast_with_error` says by how much.
    """

    def __init__(self, forecaster: Forecaster, factor: float) -> None:
        usable(forecaster)
        self.name, self.label = f"{forecaster.name}-x{factor:g}", f"{forecaster.label}, times {factor:g}"
        self.basis, self.causal = forecaster.basis, forecaster.causal
        self.is_model, self.context = forecaster.is_model, forecaster.context
        self.takes_tokens = forecaster.takes_tokens
        self._forecaster, self._factor = forecaster, factor

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        now = np.stack([history.weights[-1] for history in histories])[:, None]
        return now + np.float32(self._factor) * (self._forecaster.forecast(histories, horizons) - now)

    def forecast_with_error(
        self, histories: Sequence[History], horizons: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The forecast [B, H, P], and its expected error [B, H], of a forecaster that knows its own.

        What a forecast d̂ of least expected error misses is at right angles to it, so that of s d̂ the squared error is
        the forecast's own and (s − 1)² |d̂|².
        """
        assert isinstance(self._forecaster, CausalForecaster), f"{self._forecaster.name} does not know its error"
        made, error_BH = self._forecaster.forecast_with_error(histories, horizons)
        now = np.stack([history.weights[-1] for history in histories])[:, None]
        length_BH = np.linalg.norm((made - now).astype(np.float64), axis=2)
        stretched = now + np.float32(self._factor) * (made - now)
        return stretched, np.hypot(error_BH, (self._factor - 1) * length_BH)


def codes_for(folder: Path, store: Store, scratch: Path) -> Codes | None:
    """Return the codes of a store that a model over codes forecasts in: those that it was trained on where they are
    this store's, otherwise such as are fitted to `scratch` in the model's kind of basis. None of a causal model.

    Raises:
        TiplError: there is no such model, or these codes are of another size than those that it learned on.
    """
    if read_record(folder).kind == CausalTIPL.kind:
        return None
    model = load(folder)
    learned_on = read_training(folder)["codes"]
    fitted = scratch / f"{model_name(folder)}-codes"
    path = Path(learned_on["trials"].get("codes", fitted))  # which `fit` is told by its caller, or not
    known = {"basis": model.config.basis or "full", "dim": model.config.dim, "centered": model.config.centered}
    wanted = SVDConfig(**(known | learned_on["basis"]))
    if not path.exists() or not _are_of(Codes.open(path), store, wanted):
        path = fitted
        fit_svd(store.path, path, wanted)
    codes = Codes.open(path)
    size = codes.codes(codes.seeds[0]).shape[-1]
    if size != model.config.dim:
        raise TiplError(
            f"{folder} learned on codes of {model.config.dim} numbers, those of {store.path} have {size}: with a basis "
            "by tensor a model is for policies of one shape; train one on this store."
        )
    return codes


def _are_of(codes: Codes, store: Store, config: SVDConfig) -> bool:
    """Whether codes are of these trials and settings; that their weights are these `known_codes` sees."""
    return codes.store == store.path.resolve() and codes.seeds == store.seeds and codes.config == config
