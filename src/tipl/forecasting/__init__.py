"""Forecasters: what is shown the weights up to an origin and tells those ahead of it.

In: `History`, trained models, stores to fit on.  Out: forecast weights, by one interface (forecaster.py).
"""
