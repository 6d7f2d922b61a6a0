"""One place elsewhere from which files are fetched: S3, the web, memory, or whatever else fsspec reaches.

In: an address, a file's name below it, the most bytes that it may have.  Out: the file on this machine, or one line.

fsspec, and not obstore: one call (`get_file`) fetches from all of them, memory:// and the Hub's https among them, and
tells of every piece, so that a file without end is cut off. A redirect leads to http or https or is refused (aiohttp).
"""

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tipl.errors import TiplError
from tipl.files import Absent, Damaged, read_file

_TRIES, _PAUSE = 3, 0.3  # seconds before the second try, then four times as many
_SILENCE = 30.0  # seconds that a server may say nothing
_SLOW = 100_000  # bytes a second that a file has to come at, on the whole
_NO_ACCESS = (401, 403)


class Unreachable(TiplError):
    """What lies elsewhere does not come, which says nothing of what is there."""


class _TooLarge(Exception):
    pass


class Source:
    """Files below an address. Threads may share one.

    headers: sent with every request over https, to the address's own host alone.
    """

    def __init__(self, address: str, headers: dict[str, str] | None = None) -> None:
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise TiplError(f"{address[:60]} is no address ({error}); give SCHEME://PLACE/FOLDER.") from error
        web = parts.scheme in ("http", "https")
        placed = parts.netloc or parts.scheme == "file"
        more = "::" in address or parts.query or parts.fragment or (web and "@" in parts.netloc)
        if more or not placed:
            raise TiplError(
                f"{address[:60]} is no plain address; give SCHEME://PLACE/FOLDER without a query, a password or `::`."
            )
        self.address, self._web, self._anonymous = address.rstrip("/"), web, False
        self._scheme, self._headers = parts.scheme, headers or {}

    def get(self, name: str, to: Path, most: int) -> None:
        """Fetch a file, of at most `most` bytes, to `to`, which is written in pieces.

        Raises:
            Absent: there is none of that name.
            Damaged: it is larger.
            Unreachable: the place does not answer, or asks for credentials.
        """
        url = f"{self.address}/{quote(name)}" if self._web else f"{self.address}/{name}"
        if self._scheme == "file":
            to.write_bytes(read_file(Path(url[len("file://") :]), most))
            return
        # fsspec's own limit, since a connection that got out of step is silent and is not noticed
        patience = {} if self._scheme == "memory" else {"timeout": _SILENCE + most / _SLOW}
        tries = _TRIES if self._web else 2  # S3's client has tried by itself
        for left in reversed(range(tries)):
            try:
                self._files().get_file(url, str(to), callback=_at_most(most, not self._web), **patience)
                return
            except _TooLarge:
                raise Damaged(f"{url} has more than {most:,} bytes, which no such file has; it was refused.") from None
            except FileNotFoundError as error:
                raise Absent(f"There is no {url}; look at the address, or publish it again.") from error
            except (Exception, asyncio.CancelledError) as error:
                if type(error).__name__ == "NoCredentialsError" and not self._anonymous:
                    self._anonymous = True  # a public bucket
                elif _is_final(error) or not left:
                    raise _told(url, error) from error
                else:
                    time.sleep(_PAUSE * 4 ** (tries - 1 - left))

    def _files(self) -> Any:
        try:
            import fsspec

            if not self._web:
                return fsspec.filesystem(self._scheme, **({"anon": True} if self._anonymous else {}))
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
            return fsspec.filesystem(
                self._scheme, client_kwargs={"timeout": timeout, "trust_env": True, "headers": self._headers}
            )
        except ImportError as error:
            extra = "gcsfs" if self._scheme == "gs" else "'tipl[remote]'"
            raise TiplError(f"{self.address} takes a library that is missing; pip install {extra}.") from error
        except ValueError as error:  # fsspec's, of a scheme that it does not know
            raise TiplError(
                f"{self._scheme}:// is no place that stores are read from; give s3://, hf://, https:// or a path."
            ) from error


def _at_most(most: int, believes: bool) -> Any:
    """What fsspec tells of the bytes that come, and where it `believes` it, of those that are declared: on the web they
    may be those of a page that says that there is no such file."""
    from fsspec.callbacks import Callback

    class AtMost(Callback):
        def call(self, *_: Any, **__: Any) -> None:
            if max((self.size or 0) if believes else 0, self.value) > most:
                raise _TooLarge

    return AtMost()


def _is_final(error: BaseException) -> bool:
    """Whether it would be the same the next time."""
    status = getattr(error, "status", 0)
    return isinstance(error, PermissionError | TimeoutError | TiplError | TypeError) or (
        400 <= status < 500 and status != 429
    )


def _told(url: str, error: BaseException) -> TiplError:
    if isinstance(error, TiplError):
        return error
    if isinstance(error, PermissionError) or getattr(error, "status", 0) in _NO_ACCESS:
        return Unreachable(
            f"{url} is not shown without credentials that may read it, or is not there; log in (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or `hf auth login`), or look at the address."
        )
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return Unreachable(f"Cannot fetch {url}: {why[:200]}; try again: what has come is kept.")
