"""Where paths of weights come from: our own PPO, any torch loop, or random walks.

In: settings, or somebody else's policy.  Out: trials in a store.
"""
