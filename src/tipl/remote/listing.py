"""What something published consists of: the name, size and checksum of each of its files, in tipl.json.

In: files; what a hub says that it has.  Out: the listing; names that stay in their folder.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tipl.files import SEAL, Damaged, read_json, sealed, to_json
from tipl.shapes import Each, OneOf, Whole

LISTING = "tipl.json"
MOST_BYTES = 64 << 20
"""Of a listing: some 500,000 files."""
Sort = Literal["store", "collection", "model", "policy"]
_SHAPE = {
    "seal": str,
    "format": OneOf("tipl-published"),
    "version": OneOf(1),
    "sort": OneOf("store", "collection", "model", "policy"),
    "files": Each({"size": Whole(), "sha256": str}),
}
_PATH = re.compile(r"(?:\w[\w.-]{0,199}/){0,8}\w[\w.-]{0,199}", re.ASCII)


def make_listing(sort: Sort, files: Mapping[str, Path | bytes]) -> bytes:
    """Return tipl.json of these files."""
    facts = {name: _facts(content) for name, content in sorted(files.items())}
    listing = {"seal": SEAL, "format": "tipl-published", "version": 1, "sort": sort, "files": facts}
    return sealed((to_json(listing, LISTING, indent=1) + "\n").encode())


def read_listing(path: Path, where: str) -> dict[str, tuple[int, str]]:
    """Return the size and the SHA-256 of each file by its name, which is a plain path below a folder.

    Args:
        path: what was fetched.
        where: it was fetched from, for messages.

    Raises:
        TiplError: it is damaged, or names what lies elsewhere.
    """
    found = read_json(path, _SHAPE, most=MOST_BYTES, sealed=True, advice="have it published again")
    for name in found["files"]:
        if not _PATH.fullmatch(name) or name.endswith(".partial") or name == LISTING:
            raise Damaged(f"{where} lists a file {name[:80]!r}, which is no plain name below a folder; it was refused.")
    return {name: (facts["size"], facts["sha256"]) for name, facts in found["files"].items()}


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(content: Path | bytes) -> dict[str, int | str]:
    if isinstance(content, bytes):
        return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"size": content.stat().st_size, "sha256": digest_of(content)}
