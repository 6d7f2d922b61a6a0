"""Stores, models and policies under a name that others can fetch: the verb `hub push`.

In: what was collected, trained or forecast.  Out: a revision on a hub (remote/), with a card that says what it is.
"""
