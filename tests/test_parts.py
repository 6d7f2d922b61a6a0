"""Parts that are kept: found again under their name, and nothing damaged or of another part is taken for one.

In: small arrays.  Out: failures.
"""

from pathlib import Path

import numpy as np
import pytest

from tipl.parts import keep_part, kept_part


def test_a_part_is_found_again_and_another_is_not_taken_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrays = {"returns": np.array([[1.0, np.nan], [3.0, 4.0]]), "kinds": np.array([1, 2], np.int8)}
    shapes = {"returns": (2, 2), "kinds": (2,)}
    path = tmp_path / "parts" / "abc-1-2.safetensors"
    assert kept_part(path, shapes) is None
    keep_part(path, arrays)
    found = kept_part(path, shapes)
    assert found is not None and found["kinds"].dtype == np.int8
    np.testing.assert_array_equal(found["returns"], arrays["returns"])
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    keep_part(path.with_name("other.safetensors"), arrays)
    other = path.with_name("other.safetensors").read_bytes()
    for number, damaged in enumerate((bytes(flipped), whole[:-1], b"", other)):
        path.write_bytes(damaged)
        assert kept_part(path, shapes) is None
        aside = path.with_name(f"{path.name}.damaged{f'-{number}' if number else ''}")
        assert aside.read_bytes() == damaged and not path.exists()
        assert f"The damaged one is {aside} now." in capsys.readouterr().err
    path.write_bytes(whole)
    assert kept_part(path, {"returns": (2, 3), "kinds": (2,)}) is None
