"""``python -m tipl``, the same as ``tipl``.

In: the command line.  Out: an exit code.
"""

import sys

from tipl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
