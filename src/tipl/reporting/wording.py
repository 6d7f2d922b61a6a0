"""How numbers and words stand on the page and in the figures.

In: floats, horizons, the project's words.  Out: short strings with a true minus sign and sensible digits.
"""

import math
import re
from collections.abc import Sequence

from tipl.evaluation.statistics import LEAST_TRIALS

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

GLOSSARY = {
    "trial": "One independent reinforcement-learning run, made by its seed and its settings alone.",
    "snapshot": "All weights of the policy at one moment of a trial, as one vector φ of P numbers.",
    "origin": "The last snapshot that a forecaster is shown. Everything later is the future.",
    "steps ahead": "The horizon h: a forecast made at snapshot t is about snapshot t + h.",
    "WPE": "Weight prediction error: the mean over weights of the squared difference between the true and the "
    "predicted snapshot. Smaller is better; its size means nothing without something to compare it with.",
    "persistence": "Doing nothing: the forecast is the origin’s own weights.",
    "skill": "1 − WPE ÷ the WPE of persistence, over the same origins. 1 is a perfect forecast, 0 is no better than "
    "doing nothing, below 0 is worse than doing nothing.",
    "minus best baseline": "The forecaster’s skill minus that of the baseline that sees only the past and has the "
    "highest skill at that horizon, doing nothing among them. The interval pairs the two by trial.",
    "skill, IQM": "The interquartile mean over test trials of each trial’s own skill: no single trial, and none that "
    "moves farther than others, decides it.",
    "skill in basis": "The skill between encoded and decoded snapshots: what the basis drops counts for nobody. "
    "In a basis that has seen the future, look-ahead shows here.",
    "trials improved": "Share of test trials in which the forecast’s error is smaller than that of doing nothing: the "
    "probability of improvement, each trial compared with itself. Ties count half.",
    "trials ahead of best": "The same against the best other baseline that sees only the past, at that horizon.",
    "cosine": "Between the predicted and the true displacement from the origin. 1 is the right direction, 0 an "
    "unrelated one.",
    "ceiling": "The skill of the best forecast that anybody could make at the origin: the mean of all futures that may "
    "come from its exact state. What is above it is noise that is yet to be drawn.",
    "share": "Of the ceiling: skill ÷ ceiling. 1 is all that can be known, 0 is doing nothing.",
    "length ratio": "Length of the predicted displacement ÷ length of the true one.",
    "return": "J(φ): the mean undiscounted raw episode return of the policy with weights φ.",
    "REPW": "Return error of the predicted weights: |J(true) − J(predicted)|, on common episode seeds.",
    "REPW, median": "The median of the return errors of single origins: what the typical forecast does. A few origins "
    "can make most of REPW, which is a mean.",
    "REPW, IQM": "The interquartile mean of the return errors of single origins.",
    "worst origin": "The share that the single worst origin has in the sum of all return errors.",
    "noise floor": "REPW of a perfect forecast: |J(φ) − J(φ)| measured on two disjoint sets of episode seeds.",
    "REPW − persistence": "REPW less that of doing nothing, paired by trial. Below 0 the forecast’s returns are the "
    "closer ones.",
    "return gained": "Mean return of the predicted policies minus that of the policies at their origins, on common "
    "episode seeds. Doing nothing gains 0.",
    "gain recovered": "The return that the forecast adds to the origin’s ÷ the return that training really added. "
    "1 is all of it, 0 is none, which is what doing nothing has.",
    "change R²": "R² of the predicted against the true change in return. Returns themselves lie near the diagonal "
    "even for persistence; their changes do not.",
    "better than origin": "Share of forecasts whose policy has a higher return than the policy at the origin.",
    "reconstruction floor": "WPE of the true snapshot after encoding and decoding: no forecast made in that basis "
    "can be better.",
    "basis": "The temporal SVD in whose coordinates a model works. window and prefix use only the past, pooled only "
    "training trials; full is the SVD of the whole trial, so it sees the future of every origin.",
    "95% interval": "Studentized, over whole trials, because the forecasts of one trial depend on each other; N says "
    f"how many. Simulated, it covers with {LEAST_TRIALS} trials too; from fewer there is no interval.",
    "corrected": "For many comparisons at once: by Holm’s method, over all the signs of one evaluation, any of them is "
    "wrong in at most 5% of studies.",
}


def number(value: float) -> str:
    """Three significant digits; powers of ten where the plain form would be long."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        exponent = math.floor(math.log10(size))
        mantissa = f"{value / 10**exponent:.2f}"
        if mantissa.lstrip("-") == "10.00":
            mantissa, exponent = mantissa.replace("10.00", "1.00"), exponent + 1
        return f"{mantissa}×10{power(exponent)}".replace("-", "−")
    decimals = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", "−")


def power(exponent: int) -> str:
    return str(exponent).translate(SUPERSCRIPTS)


def score(value: float) -> str:
    """A number whose natural size is 1, such as skill: three decimals as long as they say something."""
    if abs(value) >= 1000:
        return number(value)
    text = f"{value:.{3 if abs(value) < 10 else 1}f}"
    return "0.000" if float(text) == 0 else text.replace("-", "−")


def interval(pair: tuple[float, float]) -> str:
    return f"[{score(pair[0])}, {score(pair[1])}]"


def interval_note(trials: int, drawn: str, what: str = "trials") -> str:
    """What a caption says of the intervals in a figure, or of why there are none; `drawn`: Shaded, or Bars."""
    if trials < LEAST_TRIALS:
        return f" {too_few(trials, what)}"
    return f" {drawn}: 95% intervals over {what} (N = {trials})."


def too_few(trials: int, what: str = "trials") -> str:
    return f"Too few {what} for an interval (N = {trials})."


def number_interval(pair: tuple[float, float]) -> str:
    return f"[{number(pair[0])}, {number(pair[1])}]"


def ahead(horizons: Sequence[int]) -> str:
    """``1 step ahead``, ``1 and 10 steps ahead``."""
    plural = "step" if list(horizons) == [1] else "steps"
    return f"{listing([str(horizon) for horizon in horizons])} {plural} ahead"


def listing(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def slug(text: str) -> str:
    """``InvertedPendulum-v4`` as ``inverted-pendulum-v4``: for file names and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", text).lower()).strip("-")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
