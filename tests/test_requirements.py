"""What may be installed: no release with a hole that is known, neither by the ranges nor by the lock.

In: pyproject.toml, requirements.lock, requirements-docs.lock, and the list below.  Out: failures that name the package
and the advisory.
"""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]

HOLES = {
    # package, what an attacker gets, advisory: releases that have the hole, at least one of every line that has it
    ("numcodecs", "the pickle codec runs code", "GHSA-jqc8-qjfv-5m6r"): "0.14.0 0.15.0 0.15.1 0.16.0 0.16.5 0.17.0",
    ("torch", "torch.load runs code", "GHSA-53q9-r3pm-6pq6"): "2.5.0 2.5.1",
    ("torch", "torch.load writes past its memory", "GHSA-63cw-57p8-fm3p"): "2.6.0 2.8.0 2.9.0 2.9.1",
    ("torch", "memory corruption", "PYSEC-2026-139"): "2.10.0",
    ("pillow", "out-of-bounds write", "CVE-2026-25990"): "11.3.0 12.0.0 12.1.0",
    ("pillow", "out-of-bounds write", "CVE-2026-59199"): "12.1.1 12.2.0",
    ("pillow", "out-of-bounds write", "GHSA-v9pv-5gc8-w2m6"): "12.3.0",
    ("jinja2", "a template runs code", "GHSA-cpwx-vrp4-4pq7"): "3.1.4 3.1.5",
    ("setuptools", "a file written anywhere", "GHSA-5rjg-fvgr-3xxf"): "75.0.0 78.1.0",
    ("fonttools", "a file written anywhere", "GHSA-768j-98cg-p3fv"): "4.59.0 4.60.1",
    ("filelock", "a link followed", "GHSA-w853-jp5j-5j7f"): "3.19.0 3.20.0",
    ("protobuf", "a parser without end", "GHSA-8qvm-5x2c-j2w7"): "5.29.4 6.31.0",
}


def ranges() -> dict[str, Requirement]:
    """What the package itself and its extras ask for, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return {named(requirement.name): requirement for requirement in map(Requirement, texts)}


def locked() -> dict[str, Version]:
    """What the two locks pin, by name; each package stands in one of them, once."""
    text = "".join((ROOT / name).read_text() for name in ("requirements.lock", "requirements-docs.lock"))
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    found = {named(name): Version(version) for name, version in pins}
    assert len(found) == len(pins)
    return found


def named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("hole", "releases"), HOLES.items(), ids=lambda value: value[2] if len(value) == 3 else "")
def test_no_release_with_a_known_hole_is_asked_for_or_locked(hole: tuple[str, str, str], releases: str):
    package, what, advisory = hole
    if package in (asked := ranges()):
        admitted = [release for release in releases.split() if asked[package].specifier.contains(release)]
        assert not admitted, f"pyproject.toml admits {package} {admitted}: {what} ({advisory})"
    assert str(locked()[package]) not in releases.split(), f"requirements.lock: {what} ({advisory})"
    assert locked()[package] > max(map(Version, releases.split())) or package in asked


def test_the_lock_is_within_the_ranges():
    lock, ours = locked(), ranges()
    assert ours.keys() - lock.keys() == {"wandb"}, "which tests replace, and CI does not install"
    outside = {
        name: str(lock[name]) for name in ours.keys() & lock.keys() if not ours[name].specifier.contains(lock[name])
    }
    assert outside == {}


def test_what_reads_or_writes_for_strangers_is_watched():
    assert {"numcodecs", "torch", "pillow"} <= ranges().keys() & {package for package, _, _ in HOLES}
