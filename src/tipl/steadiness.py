"""What the causal model sees of single weights, beside the inner products of their tensor: how steadily they move.

In: a window's tokens.  Out: how far each weight moved, beside its tensor, its row and its column, and how steadily.

Adam moves a weight by its mean gradient over the root of the mean square, so one that has moved far has been pushed
steadily, and more of what it did goes on; so it is for a hidden unit as a whole, whose weights are a row of one matrix
and a column of the next. The inner products of whole tensors tell nothing of this. All facts are ratios: they stay when
weights are scaled, and go with the units when these change places.

Shapes: J tokens, P weights, F facts.
"""

from collections.abc import Sequence

import numpy as np

SINGLE = 20
"""The first tokens of a window are single steps."""
SPANS = ((5, 5), (20, 20), (36, 100))
"""Over how many of the newest tokens steadiness is told, and how many snapshots these are."""
FACTS = 3 + 2 * len(SPANS)
_PAIRS = range(0, 2 * len(SPANS), 2)  # row and column of every span, after the first three facts
_FLOOR = 1e-3  # of the tensor's mean square step, added to what is compared


def weight_facts(tokens_JP: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Facts [F, P] of the weights of one tensor, from the tokens (differences of snapshots, the newest first).

    Let e be the mean square of a weight's single steps and ē its mean over the tensor; s² the square of a weight's
    displacement over a span, by the number of its snapshots: independent steps make them alike. The facts are
    ½ log(e/ē) of the weight, its row, its column; then for every span ½ log(s²/e) of its row and of its column, where e
    and s² of a row or column are means. In a tensor that is no matrix every weight is its own row and column.
    """
    single = tokens_JP[:SINGLE]
    moving = np.count_nonzero(single.any(axis=1))  # before φ_0 the run stood still
    square_P = np.einsum("jp,jp->p", single, single) / np.float32(max(moving, 1))
    moments = [square_P]
    done, total_P = 0, np.zeros_like(square_P)
    for tokens, snapshots in SPANS:
        total_P = total_P + tokens_JP[done:tokens].sum(axis=0)
        done = tokens
        moments.append(total_P**2 / np.float32(snapshots))
    unit = square_P.mean() + np.float32(1e-30)
    if len(shape) == 2:
        grid = np.stack(moments).reshape(-1, *shape)
        views = grid.mean(axis=2)[:, :, None], grid.mean(axis=1)[:, None, :]
    else:
        shape = (len(square_P), 1)
        views = (np.stack(moments)[:, :, None],) * 2
    floored = [view + np.float32(_FLOOR) * unit for view in views]
    facts = np.empty((FACTS, *shape), np.float32)
    facts[0] = np.log(square_P.reshape(shape) / unit + np.float32(_FLOOR))
    for place, view in enumerate(floored):
        facts[1 + place] = np.log(view[0] / unit)
        facts[3 + place :: 2] = np.log(view[1:] / view[0])
    facts *= np.float32(0.5)
    return facts.reshape(FACTS, -1)


def with_noise(facts: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """What facts [..., F] become on average if every weight takes steps of independent noise besides, of this variance
    [...] in the tensor's mean square step."""
    square = np.exp(2 * facts)
    mean = square[..., :3]  # of the weight, its row and its column, in the tensor's
    noise = variance[..., None]
    noisy = np.concatenate([mean + noise, *(square[..., 3 + k : 5 + k] * mean[..., 1:] + noise for k in _PAIRS)], -1)
    noisy[..., :3] /= 1 + noise
    for k in _PAIRS:
        noisy[..., 3 + k : 5 + k] /= mean[..., 1:] + noise
    return (0.5 * np.log(noisy)).astype(facts.dtype)
