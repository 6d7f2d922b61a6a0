"""TIPL: the weights that a policy passes through while it learns, as data, models and forecasts.

In: nothing; what loads numpy or torch is imported on first use.  Out: the public surface, written down.
"""

__version__ = "0.1.0"
