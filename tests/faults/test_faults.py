"""The faults as a test: a sample every time, thousands with `pytest -m large tests/faults`.

In: nothing.  Out: failures, with the faults that were not seen through.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.faults", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sample_of_faults_is_found_or_gone_on_from():
    run()


@pytest.mark.large
def test_faults_by_the_thousand_are_found_or_gone_on_from():
    run("--large")
