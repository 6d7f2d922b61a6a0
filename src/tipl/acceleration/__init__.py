"""Jumps to forecast weights inside live runs, and whether they save environment steps.

In: a live run or settings of one, a forecaster.  Out: a run that jumps, or paired runs beside plain ones.
"""
