"""Reinforcement learning: environments, policies, PPO by many trials at once, and what policies earn.

In: settings, seeds, weights.  Out: batches of running trials, their snapshots, returns.
"""
