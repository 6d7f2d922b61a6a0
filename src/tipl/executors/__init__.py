"""Executors: the same tasks in processes of this machine or on the nodes of a Ray cluster.

In: a function and the arguments of its calls.  Out: what the calls tell while they run; the error of one that failed.
"""
