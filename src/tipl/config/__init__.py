"""Settings: every one and its default, the paper's experiments, and what an environment is.

In: nothing.  Out: frozen dataclasses that functions take and the command line is made from.
"""
