"""The command line's beginning and end: run one verb, say in one line what went wrong, give the exit code.

In: the command line.  Out: what the verb writes (verbs.py), and an exit code: 0 done, 1 a bug, 2 the user's input, 130
interrupted.
"""

import errno
import sys
from collections.abc import Callable, Sequence

from tipl.cli.stopping import INTERRUPTED, end, stops_in_time
from tipl.cli.terminal import drop_broken_streams, open_streams
from tipl.cli.verbs import build_parser
from tipl.errors import TiplError, printable

# What a disk or a path of the user's can do to any stage; every other OSError is a bug.
_USER_OS_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; of the process's own command line, end with it."""
    try:
        code = _main(argv)
    except KeyboardInterrupt:  # before the verb began, or after it
        print(INTERRUPTED, file=sys.stderr)
        code = 130
    if argv is None:
        end(code)
    return code


def _main(argv: Sequence[str] | None) -> int:
    open_streams()
    with stops_in_time() as stop:

        def run() -> None:
            try:
                arguments = build_parser().parse_args(argv)
                arguments.run(arguments)
            except (Exception, KeyboardInterrupt) as error:
                if stop.told or isinstance(error, KeyboardInterrupt):
                    stop.settle()
                    raise KeyboardInterrupt from None  # a library may have made something else of it
                raise

        return exit_code(run)


def exit_code(run: Callable[[], None]) -> int:
    """Run and say how it ended; an internal error comes out as the exception that it is (Python's exit code 1)."""
    try:
        run()
        sys.stdout.flush()
    except TiplError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # nobody reads on, as after `tipl … | head`
        drop_broken_streams()
        return 130
    except OSError as error:
        if error.errno not in _USER_OS_ERRORS:
            raise
        where = f": {error.filename}" if error.filename else ""
        return _refuse(f"{error.strerror}{where}; what was committed stays readable")
    except MemoryError:
        return _refuse(
            "this takes more memory than there is; make it smaller (fewer trials, steps, weights or origins)"
        )
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    return 0


def _refuse(message: str) -> int:
    print(f"tipl: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2
