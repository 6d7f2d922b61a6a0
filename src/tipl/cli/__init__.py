"""The command line: a verb for every stage, its flags, what it prints, and how it is stopped.

In: arguments.  Out: calls of the package's verbs, an exit code.
"""

from tipl.cli.main import main

__all__ = ["main"]
