"""The ground that all files stand on: what is read is regular, bounded and whole; what is written is there or not.

In: files made by hand, each wrong in one way.  Out: failures.
"""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from tipl.errors import TiplError, printable
from tipl.files import (
    SEAL,
    Absent,
    Damaged,
    check_seal,
    file_size,
    new_folder,
    read_file,
    read_json,
    replace_file,
    sealed,
    set_aside,
    write_file,
    write_json,
)
from tipl.shapes import Each, Maybe, Number, OneOf, Whole, fault


def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"{}")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    for name, problem in {"link": "a link", "fifo": "no regular file", ".": "no regular file"}.items():
        for read in (lambda path: read_file(path, 10), file_size, read_json):
            with pytest.raises(TiplError, match=problem):
                read(tmp_path / name)
    for path in (tmp_path / "none", tmp_path / "file" / "below", Path("a\0b")):
        with pytest.raises(Absent, match="There is no"):
            read_json(path)
    assert file_size(tmp_path / "file") == 2
    with pytest.raises(TiplError, match="has 2 bytes, this program takes at most 1"):
        read_file(tmp_path / "file", 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"[" * 65, "nested more than 64 deep"),
        (b"[NaN]", "no finite number"),
        (b"[-Infinity]", "no finite number"),
        (b"[1e999]", "no finite number"),
        (b"[9223372036854775808]", "more than 64 bits"),
        (b"[" + b"1" * 5000 + b"]", "more than 64 bits"),
        (rb'["\ud800"]', "surrogates not allowed"),
        (rb'{"\udfff": 1}', "surrogates not allowed"),
        (rb'["a\u0000"]', "NUL"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"[1", "delimiter"),
        (b"", "Expecting value"),
        (b"\xff[]", "decode"),
        ("[]".encode("utf-16"), "decode"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path: Path, content: bytes, problem: str):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(Damaged, match=problem) as raised:
        read_json(tmp_path / "f.json", advice="copy it again")
    assert str(raised.value).startswith(f"{tmp_path / 'f.json'} is damaged or no JSON (")
    assert str(raised.value).endswith("); copy it again.")


def test_json_that_is_fine_is_read_as_json_reads_it(tmp_path: Path):
    content = (
        r'{"a": [1, -9223372036854775808, 0.5, 1e-5, true, null, "\u00e9 [[[ \" \\ {", {}], "\\ud800": "\ud83d\ude00"}'
    )
    (tmp_path / "f.json").write_text(content)
    assert read_json(tmp_path / "f.json") == json.loads(content)
    (tmp_path / "f.json").write_text(json.dumps(["[" * 500, '"' + "{" * 500]))
    assert read_json(tmp_path / "f.json") == ["[" * 500, '"' + "{" * 500]
    (tmp_path / "f.json").write_text("[[]," * 63 + "[]" + "]" * 63)  # many brackets, 64 deep
    assert read_json(tmp_path / "f.json") == json.loads((tmp_path / "f.json").read_text())


SHAPE = {
    "name": str,
    "sizes": [Whole(1, 9)],
    "rate": Number(0, 1),
    "kind": OneOf("a", None),
    "by_seed": Each({"committed": int}),
    "note": Maybe(str),
    "fit": (str, None),
    "any": object,
}
FACTS = {"name": "x", "sizes": [1, 9], "rate": 0, "kind": None, "by_seed": {"1": {"committed": 3}}, "fit": None,
         "any": [1], "more": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("name", 1, "`name` is a whole number, not a text"),
        ("sizes", {}, "`sizes` is an object, not a list"),
        ("sizes", [1, 0], "`sizes[1]` is 0, not a whole number from 1 to 9"),
        ("sizes", [True], "`sizes[0]` is true or false, not a whole number"),
        ("sizes", [1.0], "`sizes[0]` is a number, not a whole number"),
        ("rate", 1.5, "`rate` is 1.5, not a number from 0 to 1"),
        ("rate", None, "`rate` is null, not a number"),
        ("kind", "b", "`kind` is 'b', not 'a' or None"),
        ("by_seed", [], "`by_seed` is a list, not an object"),
        ("by_seed", {"7": {}}, "`by_seed.7.committed` is missing"),
        ("note", None, "`note` is null, not a text"),
        ("fit", 1, "`fit` is a whole number, not a text"),
    ],
)
def test_a_shape_says_which_key_is_wrong(key: str, value: object, problem: str):
    assert fault(FACTS, SHAPE) is None
    assert fault({**FACTS, "note": "n"}, SHAPE) is None
    assert fault({**FACTS, key: value}, SHAPE) == problem


def test_what_is_asked_for_and_missing_is_named(tmp_path: Path):
    write_json(tmp_path / "f.json", FACTS)
    assert read_json(tmp_path / "f.json", SHAPE) == FACTS
    with pytest.raises(Damaged, match=r"f\.json: `other` is missing; train it again"):
        read_json(tmp_path / "f.json", {"other": str}, advice="train it again")
    (tmp_path / "f.json").write_text("[]")
    with pytest.raises(Damaged, match="what it holds is a list, not an object"):
        read_json(tmp_path / "f.json", SHAPE)


def test_every_flipped_bit_of_a_sealed_file_is_found(tmp_path: Path):
    path = tmp_path / "f.json"
    write_json(path, {"steps": 10, "curve": [0.5, 1e-5]}, seal=True)
    assert read_json(path, sealed=True)["curve"] == [0.5, 1e-5]
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            harmed = bytearray(content)
            harmed[at] ^= 1 << bit
            with pytest.raises(Damaged):
                check_seal(path, bytes(harmed))
    write_json(path, {"steps": 10})
    with pytest.raises(Damaged, match="holds no checksum"):
        read_json(path, sealed=True)


def test_a_seal_stands_where_the_format_has_room(tmp_path: Path):
    content = sealed(b"numbers " + SEAL.encode() + b" more")
    check_seal(tmp_path, content)
    assert len(content) == len(b"numbers  more" + SEAL.encode())
    with pytest.raises(Damaged, match="does not match"):
        check_seal(tmp_path, content + b"!")


def test_a_file_is_replaced_whole_and_a_link_under_its_temporary_name_is_not_followed(tmp_path: Path):
    precious, path = tmp_path / "precious", tmp_path / "f"
    precious.write_text("precious")
    (tmp_path / "f.partial").symlink_to(precious)
    write_file(path, b"new")
    assert (path.read_bytes(), precious.read_text()) == (b"new", "precious")
    os.mkfifo(tmp_path / "f.partial")
    replace_file(path, b"new", b"er")
    assert path.read_bytes() == b"newer" and sorted(p.name for p in tmp_path.iterdir()) == ["f", "precious"]
    path.unlink()
    path.symlink_to(precious)
    write_file(path, b"mine")
    assert (path.read_bytes(), precious.read_text()) == (b"mine", "precious")


def test_a_full_disk_leaves_the_old_file_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a" / "f"
    write_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(TiplError, match="No space left on device; free some space"):
        patch.setattr(os, "fsync", full)
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and len([*path.parent.iterdir()]) == 1


def test_a_folder_appears_whole(tmp_path: Path):
    out = tmp_path / "a" / "out"
    with pytest.raises(ZeroDivisionError), new_folder(out, {"half"}) as folder:
        (folder / "half").touch()
        (folder / "half.partial").touch()
        raise ZeroDivisionError
    assert not out.exists()
    with new_folder(out, {"half"}) as folder:
        assert not out.exists() and not any(folder.iterdir())
        (folder / "whole").touch()
    assert [p.name for p in out.iterdir()] == ["whole"] and [p.name for p in out.parent.iterdir()] == ["out"]


def test_what_lies_under_a_temporary_name_and_is_not_ours_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "thesis")
    (tmp_path / "other.partial" / "half").mkdir(parents=True)
    for name, problem in {"out": "in the way", "other": "did not make"}.items():
        with pytest.raises(TiplError, match=problem), new_folder(tmp_path / name, {"half"}):
            raise AssertionError("not reached")
    assert (tmp_path / "thesis").is_dir() and (tmp_path / "other.partial" / "half").is_dir()


@pytest.mark.parametrize("data_at", [[], [0], [(1 << 36) - 8], [0, 1 << 30, 1 << 34]])
def test_a_file_of_holes_is_refused_before_it_is_read(data_at: list[int], tmp_path: Path):
    path = tmp_path / "checkpoint"
    with path.open("wb") as file:
        for at in data_at:
            file.seek(at)
            file.write(b"12345678")
        file.truncate(1 << 36)
    with pytest.raises(TiplError, match=r"has 68,719,476,736 bytes, hardly any of which are there"):
        read_file(path, 1 << 36)


def test_a_file_with_some_holes_is_read(tmp_path: Path):
    """As a sparse copy has where weights are zero."""
    path = tmp_path / "checkpoint"
    with path.open("wb") as file:
        file.write(b"x" * (9 << 20))
        file.truncate(65 << 20)
    assert read_file(path, 1 << 30) == b"x" * (9 << 20) + bytes(56 << 20)


def test_what_is_damaged_is_kept_under_another_name(tmp_path: Path):
    for name in ("part.damaged", "part.damaged-1"):
        (tmp_path / "part").write_text(name)
        assert set_aside(tmp_path / "part") == tmp_path / name
        assert (tmp_path / name).read_text() == name


def test_what_a_file_says_cannot_steer_a_terminal():
    said = "a\x1b[31m\n\x07\x9b\u202e\ud800é [b] :smile:"
    assert printable(said) == r"a\x1b[31m\n\x07\x9b\u202e\ud800é [b] :smile:"
    assert str(TiplError("a\nb  c \x1b[2J")) == r"a b c \x1b[2J"


@pytest.mark.parametrize("columns", range(10, 100, 3))
def test_no_number_is_cut_on_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from tipl.cli.show import show

    monkeypatch.setenv("COLUMNS", str(columns))
    numbers = {"weights": 71948, "ratio": 0.1235, "seed": 3001}
    rows = [
        {"trial": i, "env_id": "InvertedDoublePendulum-v4"} | {n: v + i for n, v in numbers.items()} for i in (0, 1)
    ]
    show({"trials": rows}, as_json=False)
    shown = re.split(r"[^\d.]+", capfd.readouterr().out)
    assert {"71948", "71949", "0.1235", "1.123", "3001", "3002"} <= {*shown}


def test_brackets_and_escapes_are_shown_as_they_are(capfd: pytest.CaptureFixture[str]):
    from tipl.cli.show import show
    from tipl.progress import console, steps_progress

    console.print("to c[/b] [red]x :smile: \x1b[31m")
    with steps_progress("m[/y]", 1) as advance:
        advance(1, "[/z]\x1b")
    shown = capfd.readouterr().err
    assert "to c[/b] [red]x :smile: \\x1b[31m\n" in shown
    assert "m[/y]: 1 of 1" in shown and r"[/z]\x1b" in shown
    show({"store": "s[/b]\x1b[2J", "trials": [{"env_id": "E[/x]\x1b"}]}, as_json=False)
    shown = capfd.readouterr().out
    assert r"s[/b]\x1b[2J" in shown and r"E[/x]\x1b" in shown and "\x1b" not in shown
