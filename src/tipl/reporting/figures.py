"""What the figures show, once for both places that draw them: the page (page.js) and paper (paper.py).

In: an `Evaluation`.  Out: `Figure`s, plain data with every limit, tick and label already chosen.
"""

from collections.abc import Callable
from functools import partial

from tipl.reporting.curves import (
    directions_by_tensor,
    directions_over_learning,
    learning_curves,
    spectra,
    training_curve,
)
from tipl.reporting.figure import Figure
from tipl.reporting.figure2 import figure_2
from tipl.reporting.gains import gain_recovered, return_errors, return_gained, variants
from tipl.reporting.read import Evaluation
from tipl.reporting.skills import by_phase, by_place, improved, look_ahead, skill


def figures(evaluation: Evaluation) -> tuple[list[Figure], list[str]]:
    """All figures that the evaluation has the numbers for, and the titles of those left out."""
    makers: list[tuple[str, Callable[[Evaluation], Figure | None]]] = [
        ("Skill by horizon", skill),
        ("Skill by place in the PPO iteration", by_place),
        ("Skill by phase of learning", by_phase),
        ("Look-ahead", look_ahead),
        ("Share of trials improved", improved),
        ("Return errors of single origins", return_errors),
        ("Return gained", return_gained),
        ("Gain recovered", gain_recovered),
        ("Other ways to run the policies", variants),
        ("Energy spectra", spectra),
        ("Directions over learning: displacements", partial(directions_over_learning, of="displacements")),
        ("Directions over learning: weights", partial(directions_over_learning, of="weights")),
        ("Directions by tensor", directions_by_tensor),
        ("Training curve", training_curve),
        ("Learning curves", learning_curves),
    ]
    drawn = [figure for model in evaluation.models if (figure := figure_2(evaluation, model))]
    left_out = [] if drawn else ["the paper’s Figure 2"]
    if not any(forecaster.returns.repw for forecaster in evaluation.forecasters):
        left_out.append("returns of predicted policies")
    for title, make in makers:
        figure = make(evaluation)
        if figure:
            drawn.append(figure)
        else:
            left_out.append(title[0].lower() + title[1:])
    return drawn, left_out
