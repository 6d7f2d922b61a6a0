"""Temporal SVD: snapshots as short codes, in four bases, and what each of them leaves out.

In: the weights [T, P] of a store's trials.  Out: CODES (a folder), bases, Gram matrices and their singular values.

In every basis the displacements or weights W that it is made from are W = U S Vᵀ, a code is a row of U's first d
columns, and code · S Vᵀ gives the weights back. They differ in the W they have seen:

    full     all of a trial, as the paper has it. LOOK-AHEAD: every code depends on the future of its snapshot.
    pooled   all of the training trials, stacked; causal for every other trial.
    prefix   φ_0 … φ_t, anew at every origin t; causal.
    window   φ_{t−K} − φ_t … φ_{t−1} − φ_t, anew at every origin t; causal.

`by_tensor` makes one full or pooled basis for each tensor of the policy; a code is then theirs end to end, and V zero
outside a direction's own tensor. `centered` subtracts a trial's own φ_0 in the first three. U is found by the method of
snapshots (Sirovich 1987): the eigenvectors of the T×T Gram matrix W Wᵀ, or of Wᵀ W where P < T, in float64. Squaring
costs accuracy: singular values below √(n · 2e-16) of the largest (1e-6 of it for n = 4,881) cannot be told from
rounding and count as zero, code included. Float32 snapshots hold no more: their own rounding is 6e-8 of a weight.

The sign of a direction is free; here the first snapshot whose code is not zero has a positive one (more than 1e-6 of
the column's largest). Shapes: T snapshots, P weights, D code, K context, S snapshots of a span, N any number.
"""

from tipl.representation.basis import Basis, trial_basis
from tipl.representation.codes import Codes
from tipl.representation.fit import fit_svd
from tipl.representation.grams import (
    ENERGY_SHARES,
    Gram,
    directions,
    gram,
    read_weights,
    spectrum,
)
from tipl.representation.origins import OriginBasis, prefix_bases, window_basis

__all__ = [
    "ENERGY_SHARES",
    "Basis",
    "Codes",
    "Gram",
    "OriginBasis",
    "directions",
    "fit_svd",
    "gram",
    "prefix_bases",
    "read_weights",
    "spectrum",
    "trial_basis",
    "window_basis",
]
