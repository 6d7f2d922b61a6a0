"""``tipl`` and ``python -m tipl``.

In: the command line.  Out: an exit code.

Nothing is imported above `main`, so that a Ctrl-C while the package is loaded ends in one line, too.
"""

import os
import sys


def main() -> int:
    """Load the command line and run one verb; returns the exit code."""
    # torch's threads spin while they wait for each other, and where other work has a core, that is most of the time
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from tipl.cli.main import main
    except KeyboardInterrupt:
        print("tipl: interrupted; nothing was begun", file=sys.stderr, flush=True)
        os._exit(130)  # Python remembers one that came within `exec`, and would end by the signal
    return main()


if __name__ == "__main__":
    sys.exit(main())
