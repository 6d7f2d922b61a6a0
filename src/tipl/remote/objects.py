"""Objects in an object store that writers replace only if they have seen them.

In: an address s3://BUCKET/FOLDER; names below it, bytes.  Out: bytes; Overtaken where another writer was quicker.

Each put is conditional (If-Match, If-None-Match): it replaces the very object that this writer saw last, or makes one
where it saw none. So a writer that slept, or a request that was long on its way, replaces nothing newer.
"""

import email.utils
import functools
from collections.abc import Iterable
from typing import Any

from tipl.errors import TiplError

MOST_BYTES = 1 << 32
_TRIES = 6  # of a request, by the client itself
_SILENCE = 60  # seconds that a server may say nothing
_OTHERS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey", "404")


class Overtaken(TiplError):
    """Another writer has replaced what this one saw."""


class Objects:
    """Objects below an address. Threads may share one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._bucket, _, self._folder = address.removeprefix("s3://").partition("/")
        self._tags: dict[str, str] = {}
        """Of each object, the tag of what this writer saw last."""
        self.age = 0.0
        """Seconds since the object was put that `get` returned last, by the server's clock."""

    def get(self, name: str) -> bytes | None:
        """Return an object's content, None where there is none.

        Raises:
            TiplError: the place cannot be used, or the object is larger than anything that is put here.
        """
        try:
            found = self._ask("get_object", name)
        except Overtaken:
            self._tags.pop(name, None)
            return None
        if found["ContentLength"] > MOST_BYTES:
            raise TiplError(f"{self.address}/{name} has {found['ContentLength']:,} bytes; no such file has that many.")
        try:
            content = found["Body"].read()
        except Exception as error:
            raise _told(f"{self.address}/{name}", error) from error
        now = email.utils.parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        self._tags[name], self.age = found["ETag"], (now - found["LastModified"]).total_seconds()
        return content

    def put(self, name: str, content: bytes) -> None:
        """Replace an object.

        Raises:
            Overtaken: it is not what this writer saw last. What is there now counts as seen.
            TiplError: the place cannot be used.
        """
        seen = self._tags.get(name)
        condition = {"IfMatch": seen} if seen else {"IfNoneMatch": "*"}
        try:
            self._tags[name] = self._ask("put_object", name, Body=content, **condition)["ETag"]
        except Overtaken:
            if self.get(name) != content:  # otherwise it is ours: only the answer was lost
                raise

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects that nothing speaks of any more."""
        for name in names:
            self._ask("delete_object", name)
            self._tags.pop(name, None)

    def require_conditions(self, name: str, content: bytes) -> None:
        """
        Args:
            name, content: of an object that is always the same.

        Raises:
            TiplError: this server replaces objects whatever the condition.
        """
        if self.get(name) is None:
            self.put(name, content)
        try:
            self._ask("put_object", name, Body=content, IfMatch='"00000000000000000000000000000000"')
        except Overtaken:
            return
        raise TiplError(
            f"{self.address}: this server does not heed If-Match, without which two writers would harm a store; "
            "collect to a folder, and publish it from there (`tipl hub push`)."
        )

    def _ask(self, what: str, name: str, **more: Any) -> Any:
        """Raises Overtaken where an object is not there, or not what the condition says."""
        try:
            return getattr(client(), what)(Bucket=self._bucket, Key=f"{self._folder}/{name}", **more)
        except Exception as error:
            facts: Any = getattr(error, "response", {})
            if facts.get("Error", {}).get("Code") in _OTHERS:
                raise Overtaken(f"{self.address}/{name} was changed by another writer.") from error
            raise _told(self.address, error) from error


@functools.cache
def client() -> Any:
    """Return the client of S3 that s3fs brings along. Threads may share it."""
    try:
        import botocore.session
        from botocore.config import Config
    except ImportError as error:
        raise TiplError("Object stores take a library that is missing; pip install 'tipl[remote]'.") from error
    retries: Any = {"max_attempts": _TRIES, "mode": "standard"}
    how = Config(retries=retries, connect_timeout=10, read_timeout=_SILENCE, max_pool_connections=16)
    return botocore.session.get_session().create_client("s3", config=how)


def _told(where: str, error: Exception) -> TiplError:
    if isinstance(error, TiplError):
        return error
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return TiplError(
        f"{where} cannot be used: {why}; look at the address and its credentials. What was committed stays, and the "
        "same command goes on."
    )
