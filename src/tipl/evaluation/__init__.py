"""How good are forecasts? Origins, errors, returns, and what may be said of them.

In: a store, forecasters.  Out: metrics.json.
"""
