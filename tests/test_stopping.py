"""A command that is told to stop says so, ends in time with 130, and leaves the terminal and its files in order.

In: small programs, real signals.  Out: failures.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT = 20.0

# A command whose main thread is away in C, in training's own way of stopping, or in a library that hides Ctrl-C.
PROGRAM = """
import signal, sys, time
from importlib import import_module
from tipl.cli import stopping
cli = import_module("tipl.cli.main")
stopping.GRACE_SECONDS = 1.5 if sys.argv[1] == "away" else 15
def away():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})  # another thread has them
    time.sleep(1000)
def python():
    time.sleep(1000)
def pressed():
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(1))
    while not came: time.sleep(0.01)
    raise KeyboardInterrupt
def hidden():
    try: time.sleep(1000)
    except KeyboardInterrupt: raise ValueError("made something else of it") from None
class Slow:
    def __del__(self): time.sleep(1000)
def callback():
    slow = Slow()
    del slow
    time.sleep(1000)
def tidy():
    try:
        print("begun", flush=True)
        time.sleep(1000)
    finally:
        time.sleep(1.0)
        print("tidied", flush=True)
class Arguments: pass
class Parser:
    def parse_args(self, argv):
        arguments = Arguments()
        arguments.run = lambda _: (sys.argv[1] == "tidy" or print("begun", flush=True), globals()[sys.argv[1]]())
        return arguments
cli.build_parser = Parser
sys.exit(cli.main())
"""


def start(what: str, **options) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("what", ["python", "pressed", "hidden", "callback", "away"])
def test_every_way_of_telling_it_to_stop_ends_it_in_time(number: int, what: str):
    process = start(what)
    began = time.monotonic()
    process.send_signal(number)
    error = process.communicate(timeout=LIMIT)[1].splitlines()
    assert process.returncode == 130, error
    assert error[0].startswith("tipl: stopping") and error[-1].startswith("tipl: interrupted;") and len(error) == 2
    assert what == "away" or time.monotonic() - began < 15


def test_it_says_so_at_once_also_while_the_main_thread_is_away():
    process = start("away")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.stderr is not None and process.stderr.readline().startswith("tipl: stopping")
    assert time.monotonic() - began < 1.5
    process.communicate(timeout=LIMIT)


def test_the_same_signal_twice_at_once_lets_it_tidy_up_and_a_later_one_ends_it():
    process = start("tidy")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=LIMIT)
    assert (out, process.returncode) == ("tidied\n", 130) and "Traceback" not in error, error

    process = start("tidy")
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=LIMIT)
    assert (out, process.returncode) == ("", 130) and "Traceback" not in error


def test_a_signal_while_the_package_is_loaded_is_one_line(tmp_path: Path):
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")  # as Python does at the line that it is at
    stopped = subprocess.run(
        [sys.executable, "-m", "tipl", "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert (stopped.returncode, stopped.stderr) == (130, "tipl: interrupted; nothing was begun\n")


def test_what_was_told_to_ignore_a_signal_does():
    """As with nohup, and as a shell's background does with Ctrl-C."""
    ignored = [signal.SIGHUP, signal.SIGINT]
    process = start("python", preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored])
    for number in ignored:
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 130


def tipl(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tipl", *words], text=True, timeout=3 * LIMIT, **options)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path):
    read, write = os.pipe()
    os.close(read)
    done = tipl("--help", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == "" and done.returncode in (0, 130)


def test_closed_streams_are_no_error():
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        command = f"{sys.executable} -m tipl --version {closed}"
        assert subprocess.run(["sh", "-c", command], stderr=subprocess.DEVNULL, timeout=LIMIT).returncode == 0


def test_a_terminal_without_these_letters_shows_codes():
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = tipl("forecast", "--help", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plain)
    assert done.returncode == 0 and done.stderr == "" and "\\u03c6" in done.stdout
