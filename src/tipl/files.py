"""Files as this program reads and writes them: regular ones, of bounded size, replaced whole, sealed by a checksum.

In: paths and bytes.  Out: bytes or JSON that can be trusted to be what was written, or one line about what is wrong.

Nothing here follows a link, waits for a FIFO, or takes memory before the size is known. What a file says is data: JSON
is bounded in size and depth, finite, and of the shape that is asked for (shapes.py).

A sealed file holds `SEAL` once, its zeros replaced by the SHA-256 of the file with the zeros in place. So every bit of
the file counts, in whatever format it is: the seal stands in a JSON value, in the metadata of a safetensors file, or at
the end of one that takes anything there.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.shapes import WHOLE, fault

JSON_BYTES = 4 << 20
"""The most that a JSON file may take, unless its reader says otherwise."""
JSON_DEPTH = 64
SEAL = "sha256:" + "0" * 64
"""What stands in a file's content until `write_file` seals it."""
PARTIAL = ".partial"
"""What the name of a file or folder ends in until it is whole."""

_SEALED = re.compile(rb"sha256:[0-9a-f]{64}")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|$)', re.DOTALL)
_LARGE, _MOST_HOLES = 64 << 20, 8  # bytes of a file that may be this many times what is there
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COPY = "bring it back from a copy"


class Absent(TiplError):
    """There is no file of that name."""


class Damaged(TiplError):
    """A file is not what was written: cut short, other bits, another file's content, or no file of this program."""


# Reading.


def read_file(path: Path, most: int, advice: str = _COPY) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        Absent: nothing is there.
        TiplError: a link, a folder, a FIFO or a device is there, it is larger or mostly holes, or it cannot be read.
    """
    descriptor = _open(path, advice)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size <= most and _is_sparse(descriptor, size):
            raise TiplError(f"{path} has {size:,} bytes, hardly any of which are there (it is sparse); {advice}.")
        try:
            content = file.read(size + 1) if size <= most else b""
        except OSError as error:
            raise TiplError(f"Cannot read {path}: {error.strerror}; {advice}.") from error
    if max(size, len(content)) > most:
        raise TiplError(f"{path} has {size:,} bytes, this program takes at most {most:,}; {advice}.")
    return content


def _is_sparse(descriptor: int, size: int) -> bool:
    """Whether a large file consists of holes for the most part, which cost nothing to send and memory to read."""
    there = at = 0
    try:
        while size > _LARGE and at < size and _MOST_HOLES * there < size:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
            there += at - begin
    except (OSError, AttributeError) as error:
        if getattr(error, "errno", None) != errno.ENXIO:  # nothing after that; otherwise holes are not told of here
            return False
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return size > _LARGE and _MOST_HOLES * there < size


def file_size(path: Path, advice: str = _COPY) -> int:
    """Return the size of a regular file. Raises as `read_file` does."""
    descriptor = _open(path, advice)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _open(path: Path, advice: str) -> int:
    """Open a regular file without following a link, and without waiting where it is a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise Absent(f"There is no {path}; {advice}.") from error
    except OSError as error:
        why = "it is a link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise TiplError(f"Cannot read {path}: {why}; {advice}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TiplError(f"{path} is no regular file; {advice}.")
    return descriptor


def read_json(
    path: Path,
    shape: Any = object,
    most: int = JSON_BYTES,
    advice: str = _COPY,
    sealed: bool = False,
    finite: bool = True,
) -> Any:
    """Return what a JSON file says, of the given shape.

    Args:
        shape: see shapes.py.
        most: bytes that the file may have.
        advice: what to do where it cannot be used, as the end of a sentence.
        sealed: whether the file has to hold a seal, and to agree with it.
        finite: whether NaN and infinities are refused.

    Raises:
        Absent: there is no such file.
        Damaged: it is no JSON, too deep, holds NaN, repeated keys or half characters, is of another shape, or other
            bits.
        TiplError: it is no regular file, too large, or cannot be read.
    """
    content = read_file(path, most, advice)
    if sealed:
        check_seal(path, content, advice)
    return require(parse_json(content, str(path), advice, finite), shape, str(path), advice)


def parse_json(content: bytes, where: str, advice: str = _COPY, finite: bool = True) -> Any:
    """Return what JSON says that comes from `where`. Raises Damaged as `read_json` does.

    Args:
        finite: whether NaN and infinities are refused.
    """
    try:
        text = content.decode("utf-8")
        if _depth(text) > JSON_DEPTH:
            raise ValueError(f"nested more than {JSON_DEPTH} deep")
        number = _finite if finite else float
        found = json.loads(text, parse_int=_whole, parse_float=number, parse_constant=number, object_pairs_hook=_unique)
        if "\\u" in text:
            _check_characters(found)
    except ValueError as error:
        raise Damaged(f"{where} is damaged or no JSON ({error}); {advice}.") from error
    return found


def require(found: Any, shape: Any, where: str, advice: str = _COPY) -> Any:
    """Return `found` if it has the shape. Raises Damaged where it has not; `where` names the file."""
    wrong = fault(found, shape)
    if wrong:
        raise Damaged(f"{where}: {wrong}; {advice}.")
    return found


def _depth(text: str) -> int:
    """The deepest nesting of brackets outside of strings; json would recurse as deep."""
    if text.count("[") + text.count("{") <= JSON_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -WHOLE - 1 <= int(digits) <= WHOLE:
        raise ValueError("a whole number of more than 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _check_characters(value: Any) -> None:
    """JSON can write half of a pair and NUL as escapes; neither can stand in a name or a line."""
    if isinstance(value, str):
        value.encode("utf-8")
        if "\0" in value:
            raise ValueError("a text with a NUL")
    elif isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_characters(each)


# Seals.


def sealed(content: bytes) -> bytes:
    """Return content with its `SEAL` filled in."""
    at = content.index(SEAL.encode())
    return _with_seal(content, at, hashlib.sha256(content).hexdigest())


def seal_of(content: bytes) -> str:
    """Return the seal that sealed content holds: what tells this file from any other."""
    found = _SEALED.search(content)
    assert found, "check_seal comes first"
    return found.group().decode()


def check_seal(path: Path, content: bytes, advice: str = _COPY) -> None:
    """Raise Damaged where content holds no seal, or another than its own."""
    if _SEALED.search(content) is None:
        raise Damaged(f"{path} holds no checksum, so it is damaged or of an earlier version; {advice}.")
    if changed_since_sealed(content):
        raise Damaged(f"{path} is damaged: its checksum does not match; {advice}.")


def changed_since_sealed(content: bytes) -> bool:
    """Return whether content is other than it was sealed; content that was never sealed is not."""
    found = _SEALED.search(content)
    if found is None:
        return b'"seal"' in content  # of JSON whose seal itself was changed
    whole = _with_seal(content, found.start(), "0" * 64)
    return hashlib.sha256(whole).hexdigest() != found.group().decode().removeprefix("sha256:")


def _with_seal(content: bytes, at: int, digits: str) -> bytes:
    start = at + len("sha256:")
    return b"".join([content[:start], digits.encode(), content[start + 64 :]])


# Writing.


def replace_file(path: Path, *parts: bytes, sync: bool = True) -> None:
    """Write a file so that a crash at any byte leaves the old one or the new one. Raises OSError.

    Whatever lay under the temporary name is removed, never written into: it may be a link.

    Without `sync` that holds for a program that is killed; for a machine that loses power only where the file system
    itself writes a file out before it replaces another (ext4 and btrfs do).
    """
    partial = path.with_name(path.name + PARTIAL)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(partial, flags, 0o666)
    except FileExistsError:
        partial.unlink()
        descriptor = os.open(partial, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(parts)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file in one step, and the folders above it.

    Raises:
        TiplError: the place cannot be written, or the disk is full.
    """
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def write_json(path: Path, facts: dict[str, Any], seal: bool = False) -> None:
    """Write facts as JSON in one step; with `seal` as one that `read_json(…, sealed=True)` takes.

    Raises:
        TiplError: the place cannot be written, or the disk is full.
    """
    facts = {"seal": SEAL, **facts} if seal else facts
    content = (to_json(facts, str(path), indent=1) + "\n").encode()
    write_file(path, sealed(content) if seal else content)


def to_json(facts: Any, where: str, indent: int | None = 2) -> str:
    """Return facts as strict JSON, of which every number is finite.

    Raises:
        TiplError: one is not; it is named.
    """
    try:
        return json.dumps(facts, indent=indent, allow_nan=False)
    except ValueError:
        name = next(_not_finite(facts, ""), "a number")
        raise TiplError(f"{where} cannot be written: {name} is not finite; find out where that comes from.") from None


def _not_finite(value: Any, name: str) -> Iterator[str]:
    """The names of numbers that are NaN or infinite, by the keys that lead to them."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name or "a number"
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))


@contextlib.contextmanager
def new_folder(path: Path, made: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill, which then appears under its name by one rename.

    Args:
        made: names of files that an earlier try, which was stopped, may have left under the temporary name; they are
            removed, and nothing else is.

    Raises:
        TiplError: something else lies there, or the place cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    with told(path):
        if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
            raise TiplError(f"{partial} is in the way; move it away.")
        partial.mkdir(parents=True, exist_ok=True)
        left = [*partial.iterdir()]
        if any(each.is_dir() or each.name.removesuffix(PARTIAL) not in made for each in left):
            raise TiplError(f"{partial} holds what this program did not make; move it away.")
        for each in left:
            each.unlink()
        yield partial
        os.rename(partial, path)


def require_no_store_above(out: Path, itself: bool = True) -> None:
    """Refuse an output that lies in a data set, where nothing but its own trials belongs.

    Args:
        itself: whether `out` may be no data set either.

    Raises:
        TiplError: it does, or is one.
    """
    place = Path(os.path.realpath(out))
    store = next((each for each in [place, *place.parents][not itself :] if (each / "zarr.json").exists()), None)
    if store is not None:
        raise TiplError(f"{out} is in {store}, which is a data set; give --out a place outside of it.")


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that it is out of the way and still there, and return its new path.

    Raises:
        TiplError: the place cannot be written.
    """
    with told(path):
        for number in range(1000):
            aside = path.with_name(f"{path.name}.damaged{f'-{number}' if number else ''}")
            if not os.path.lexists(aside):
                break
        os.rename(path, aside)
    return aside


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError of writing `path` into one line."""
    try:
        yield
    except OSError as error:
        advice = "free some space" if error.errno in _OUT_OF_ROOM else "mend that"
        raise TiplError(f"Cannot write {path}: {error.strerror or error}; {advice} or choose another place.") from error
