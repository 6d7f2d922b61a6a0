"""Numbers of a metrics.json: what is null or not finite is absent.

In: parts of the parsed file.  Out: floats, curves and intervals by horizon.
"""

import math
from collections.abc import Mapping
from typing import Any

Curve = dict[int, float]
"""Horizon → value."""
Intervals = dict[int, tuple[float, float]]
"""Horizon → 95% interval."""


def finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def curve_of(curve: Mapping[str, Any] | None) -> Curve:
    items = ((int(horizon), finite(value)) for horizon, value in (curve or {}).items())
    return {horizon: value for horizon, value in sorted(items, key=lambda item: item[0]) if value is not None}


def interval_of(pair: Any) -> tuple[float, float] | None:
    low, high = pair if pair is not None else (None, None)
    low, high = finite(low), finite(high)
    return None if low is None or high is None else (low, high)


def intervals_of(intervals: Mapping[str, Any] | None) -> Intervals:
    items = ((int(horizon), interval_of(pair)) for horizon, pair in (intervals or {}).items())
    return {horizon: pair for horizon, pair in sorted(items, key=lambda item: item[0]) if pair is not None}


def pairs_of(x: list[Any], y: list[Any]) -> tuple[list[float], list[float]]:
    kept = [
        (a, b)
        for left, right in zip(x, y, strict=True)
        if (a := finite(left)) is not None and (b := finite(right)) is not None
    ]
    return [a for a, _ in kept], [b for _, b in kept]
