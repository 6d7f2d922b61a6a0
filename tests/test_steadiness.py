"""How steadily single weights move: against a loop over weights.

In: random tokens.  Out: failures that name the fact.
"""

import math

import numpy as np
import pytest

from tipl.steadiness import FACTS, SPANS, weight_facts
from tipl.windows import EDGES, TOKENS


@pytest.mark.parametrize("shape", [(3, 4), (5,), (1, 1)])
@pytest.mark.parametrize("still", [0, 17])  # single steps before φ_0
def test_facts_are_those_of_a_loop(shape: tuple[int, ...], still: int):
    size = math.prod(shape)
    tokens = np.random.default_rng(0).standard_normal((TOKENS, size)).astype(np.float32)
    tokens[20 - still :] = tokens[20 - still :] * (still == 0)
    e = [sum(float(tokens[j, i]) ** 2 for j in range(20)) / (20 - still) for i in range(size)]
    s = [[sum(float(tokens[j, i]) for j in range(n)) ** 2 / length for i in range(size)] for n, length in SPANS]
    mean = sum(e) / size
    found = weight_facts(tokens, shape)
    assert found.shape == (FACTS, size) and found.dtype == np.float32
    for i in range(size):
        if len(shape) == 2:
            row = [k for k in range(size) if k // shape[1] == i // shape[1]]
            column = [k for k in range(size) if k % shape[1] == i % shape[1]]
        else:
            row = column = [i]
        expected = [math.log(e[i] / mean + 1e-3) / 2]
        means = [
            [sum(values[k] for k in line) / len(line) + 1e-3 * mean for values in (e, *s)] for line in (row, column)
        ]
        expected += [math.log(line[0] / mean) / 2 for line in means]
        for span in range(len(SPANS)):
            expected += [math.log(line[1 + span] / line[0]) / 2 for line in means]
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-4, atol=1e-4)


def test_scaling_the_tokens_changes_no_fact_and_standing_still_is_finite():
    tokens = np.random.default_rng(1).standard_normal((TOKENS, 12)).astype(np.float32)
    np.testing.assert_allclose(weight_facts(1e-4 * tokens, (4, 3)), weight_facts(tokens, (4, 3)), atol=1e-4)
    assert np.isfinite(weight_facts(0 * tokens, (4, 3))).all()


def test_the_spans_are_those_of_the_tokens():
    assert all(EDGES[tokens] == snapshots for tokens, snapshots in SPANS)
