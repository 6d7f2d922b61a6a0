"""Files that lie: JSON with values of other types and sizes, sealed so that they are believed, and no files at all.

In: sound outputs, Hypothesis.  Out: what came of reading them by every verb: done, refused, traceback, hang, code run,
memory, changed (something outside of the folder that the verb writes).
"""

import contextlib
import copy
import functools
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.faults import small
from tests.faults.forked import Ended, Tally, forked, late, resident

from tipl.files import SEAL, seal_of, sealed

ONLY_IN = "evil"
"""A module that lies in the folder, and that nothing may import."""
_READS = {
    # the readers that look into a kind of output
    small.STORE: ["info", "verify", "judge", "run", "forecast", "fit-svd", "compact"],
    small.MODEL: ["forecast of codes", "judge a model"],
    small.CODES: ["judge a model", "forecast of codes"],
    small.EVAL: ["report"],
    small.COMPARISON: ["report a comparison"],
}
VALUES = st.one_of(
    st.sampled_from([
        None, True, False, 0, -1, 1, 2, 7, 10**6, 10**9, 10**13, 2**63 - 1, 2**64, -(10**13), 0.5, -0.0, 1e308, 1e-320,
        "", "x", "1", "../../home", "/etc/passwd", "a/b", ".", "..", "trials", f"{ONLY_IN}:X-v0", f"{ONLY_IN}/X-v0",
        "CartPole-v1", "\x1b[2J\x1b]0;x\x07", "\u202eabc", "[/b][red]", "<script>alert(1)</script>", "nan", "é" * 300,
        "x" * 100_000, [], {}, [[]], [None], {"a": 1}, [0] * 1000, [10**13, 10**13], [-1], ["x"],
    ]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.lists(st.integers(-2, 5), max_size=4),
)  # fmt: skip
_MANY = 50  # outputs, for which it pays to start the processes that memory is held against
Lie = tuple[int, Any, bool]
"""At which place, which value, or whether the place is gone."""
_SPECIAL = ["deep", "huge", "fifo", "link", "folder", "empty", "binary", "absent", "surrogate", "twice", "utf-16"]
_PLACE = st.integers(0, 10**6)
_FILE = st.tuples(
    _PLACE,
    st.sampled_from([None] * 60 + _SPECIAL),
    st.lists(st.tuples(_PLACE, VALUES, st.sampled_from([False] * 5 + [True])), min_size=1, max_size=3),
)
FILES = st.tuples(_PLACE, st.lists(_FILE, min_size=1, max_size=4))
"""By which reader, and which files of one output lie in which way."""
Content = bytes | str


def stores(folder: Path, count: int, number: int, tally: Tally) -> None:
    """Read `count` outputs that lie, in one file or several, by the verbs that read them."""
    documents = [*_documents(folder)]
    random.Random(number).shuffle(documents)
    most = functools.cache(lambda name: _most(folder, name, exact=count > _MANY))
    tried = 0

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=[*HealthCheck])  # fmt: skip  # pyright: ignore[reportArgumentType]
    @given(FILES)
    def one(told: tuple[int, list[tuple[int, str | None, list[Lie]]]]) -> None:
        nonlocal tried
        if tried >= count or late():
            return
        kind, path = documents[tried % len(documents)]
        tried += 1
        alike = [other for other_kind, other in documents if other_kind == kind]
        paths = [path, *(alike[place % len(alike)] for place, *_ in told[1][1:])]
        contents = {path: special or _lie(path, lies) for path, (_, special, lies) in zip(paths, told[1], strict=True)}
        reader = _READS[kind][told[0] % len(_READS[kind])]
        lies = ", ".join(f"{path.relative_to(folder)} as {_short(content)}" for path, content in contents.items())
        if not tally.had(fault := f"{tried}: {reader}"):
            tally.add(fault, _read(folder, contents, reader, most), f"with {lies}")

    one()


def _most(folder: Path, reader: str, exact: bool) -> int:
    """How much memory a reader may take beside what is there: as much as it and its own process take where all is
    sound; not `exact`: as this process does.

    The reader is run once in this process, so that its forks need not import and compile what it takes.
    """
    _clear(folder)
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        small.READERS[reader]()
    os.chdir("/")
    _clear(folder)
    if not exact:
        return resident()
    program = (
        "import sys\nfrom tipl.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    command = [sys.executable, "-c", program, *small.READERS[reader].words]  # type: ignore[attr-defined]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return _run(folder, reader).grown + int(done.stdout.split()[-2]) * 1024


def _clear(folder: Path) -> None:
    """Remove what a reader wrote."""
    for left in folder.glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _documents(folder: Path) -> Iterator[tuple[str, Path]]:
    """The JSON files of every kind of output, the large ones of a store's arrays once each."""
    for kind in _READS:
        for path in sorted((folder / kind).rglob("*.json")):
            of_array = path.name == "zarr.json" and "trials" in path.parts[-4:-2]
            if "resume" not in path.parts and (not of_array or path.parent.name in ("weights", "env_step")):
                yield kind, path


def _lie(path: Path, lies: list[Lie]) -> bytes:
    """The content of a file with other values at some places of it, or without those places."""
    document = json.loads(path.read_bytes())
    for place, value, absent in lies:
        places = [*_places(document)]
        if not places:
            break
        parent, key = places[place % len(places)]
        if absent:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(value)
    return _believed(document)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 20)):
            if key != "seal":
                yield value, key
                yield from _places(value[key])


def _believed(document: Any) -> bytes:
    """As the writer of the file would have it, with its checksum right."""
    for place in (document, document.get("attributes") if isinstance(document, dict) else None):
        if isinstance(place, dict) and isinstance(place.get("seal"), str):
            place["seal"] = SEAL
            return sealed(json.dumps(document, indent=1).encode())
    return json.dumps(document, indent=1).encode()


def _read(folder: Path, contents: Mapping[Path, Content], reader: str, most: Callable[[str], int]) -> str:
    home, aside = folder / "home", folder / "aside"
    for made in (home, aside):
        made.mkdir(exist_ok=True)
    (home / "thesis.tex").write_text("precious")
    (folder / f"{ONLY_IN}.py").write_text("raise SystemExit('ran')\n")
    limit, root = most(reader), folder / small.STORE / "zarr.json"
    kept = root.read_bytes()
    for number, path in enumerate(contents):
        os.rename(path, aside / str(number))
    try:
        for path, content in contents.items():
            _place(path, content, home)
        for path, content in contents.items():
            believed = root not in contents and path.parent.parent.name == "trials"
            if believed and isinstance(content, bytes):
                root.write_bytes(_with_record(root.read_bytes(), path.parent.name, content))
        before = _listing(folder)
        ended = _run(folder, reader)
        return _came(ended, limit) if _listing(folder) == before else "changed"
    finally:
        for number, path in enumerate(contents):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            os.rename(aside / str(number), path)
        root.write_bytes(kept)


def _with_record(root: bytes, trial: str, record: bytes) -> bytes:
    """The store's own file, which names the checksum of every record, with that of a record that lies."""
    document = json.loads(root)
    if (named := document["attributes"].get("trials")) and b"sha256:" in record:
        named[trial] = seal_of(record)
    return _believed(document)


def _run(folder: Path, reader: str) -> Ended:
    """Run a reader, which may write to `out` alone."""
    _clear(folder)
    sys.path[:0] = [str(folder)]
    try:
        return forked(lambda: (small.READERS[reader](), _nothing_imported())[1], folder)
    finally:
        sys.path.remove(str(folder))


def _nothing_imported() -> None:
    assert ONLY_IN not in sys.modules, "code run"


def _place(path: Path, content: Content, home: Path) -> None:
    match content:
        case bytes():
            path.write_bytes(content)
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(home / "thesis.tex")
        case "folder":
            path.mkdir()
        case "absent":
            pass
        case _:
            path.write_bytes({
                "deep": b"[" * 100_000 + b"]" * 100_000,
                "huge": b'{"a": "' + b"x" * (300 << 20) + b'"}',
                "empty": b"",
                "binary": bytes(range(256)),
                "surrogate": rb'{"attributes": {"env_id": "\ud800"}}',
                "twice": b'{"attributes": {}, "attributes": {}}',
                "utf-16": "{}".encode("utf-16"),
            }[content])  # fmt: skip


def _came(ended: Ended, most: int) -> str:
    if ended.hung:
        return "hang"
    if "code run" in ended.said or "\nran" in ended.said:
        return "code run"
    if ended.failed:
        lines = ended.said.strip().splitlines()
        return f"traceback ({lines[-1][:120] if lines else ended.code})"
    if "\x1b" in ended.said:
        return "escape sequence"
    if ended.grown > most:
        return f"memory ({ended.grown >> 20} MiB)"
    return "done" if ended.code == 0 else "refused"


def _listing(folder: Path) -> str:
    """A digest of all files but what the reader may write."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if not inside[0].startswith(("out", "aside")) and "__pycache__" not in inside and not path.is_dir():
            facts = path.lstat()
            digest.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _short(content: Content) -> str:
    return content if isinstance(content, str) else content[:60].decode(errors="replace") + "…"
