"""Processes that work for another end with it, and whatever becomes of one, the other never waits for ever.

In: small functions in real processes, real signals.  Out: failures.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tipl import processes
from tipl.errors import TiplError
from tipl.processes import Parent, run_in_processes, threads_here

LIMIT = 20.0  # seconds after which anything here has failed


def tell_and_write(parent: Parent, path: Path, number: int) -> None:
    parent.tell([-1.0, 0.0])
    parent.tell([number, 0.5])
    path.write_text(f"{os.environ['OMP_NUM_THREADS']} {threads_here()}")


def flood(parent: Parent, seconds: float) -> None:
    """Tell far more than a pipe holds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        parent.tell([1.0] * 500)


def tell_of_many(parent: Parent) -> None:
    parent.tell(*((n, 10 * n, 100 * n) for n in range(1000)))


def until_stopped(parent: Parent, mark: Path) -> None:
    parent.tell([1.0] * 500)
    mark.with_suffix(".begun").write_text(str(os.getpid()))
    while not parent.wants_stop():
        parent.tell([1.0] * 500)
    mark.write_text("kept")


def deaf(parent: Parent, mark: Path) -> None:
    parent.tell([0.0])
    mark.with_suffix(".begun").write_text(str(os.getpid()))
    time.sleep(1000)


def refuse(parent: Parent, what: str) -> None:
    raise TiplError(f"{what} cannot be used")


class Unpicklable(Exception):
    def __init__(self, lock: object, text: str) -> None:
        super().__init__(lock, text)
        self.lock = lock


def break_down(parent: Parent, mark: Path) -> None:
    while not mark.exists():
        time.sleep(0.01)
    raise Unpicklable(threading.Lock(), "näh " * 3000)


def die(parent: Parent, number: int, mark: Path) -> None:
    while not mark.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def leave(parent: Parent) -> None:
    os._exit(3)


def either(parent: Parent, work: Callable[..., None], *arguments: object) -> None:
    work(parent, *arguments)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"  # dead, not yet buried
    except OSError:
        return False


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_every_task_is_called_with_one_compute_thread_and_tells_its_parent(tmp_path: Path):
    heard, ended = [], []
    tasks = [(tmp_path / str(n), n) for n in range(5)]
    before = os.environ.get("OMP_NUM_THREADS")
    run_in_processes(
        tell_and_write, tasks, 2, list("abcde"), lambda task, numbers: heard.append((task, *numbers)), ended.append
    )
    assert {row for row in heard if row[1] >= 0} == {(n, n, 0.5) for n in range(5)} and sorted(ended) == [0, 1, 2, 3, 4]
    assert [path.read_text() for path, _ in tasks] == ["1 1"] * 5
    assert threads_here() == len(os.sched_getaffinity(0))
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_parent_that_does_not_read_stops_nobody():
    began = time.monotonic()
    run_in_processes(flood, [(1.0,)], 1, ["a"], lambda task, numbers: time.sleep(0.05))
    assert time.monotonic() - began < LIMIT


def test_long_news_come_in_messages_of_whole_rows():
    heard: list[tuple[float, ...]] = []
    run_in_processes(tell_of_many, [()], 1, ["a"], lambda task, numbers: heard.append(numbers))
    assert len(heard) > 1 and all(len(numbers) % 3 == 0 for numbers in heard)
    rows = [numbers[at : at + 3] for numbers in heard for at in range(0, len(numbers), 3)]
    assert rows == [(n, 10 * n, 100 * n) for n in range(1000)]


def test_a_refusal_comes_out_once_the_others_are_done(tmp_path: Path):
    tasks = [
        (refuse, "this"),
        (tell_and_write, tmp_path / "a", 1),
        (refuse, "that"),
        (tell_and_write, tmp_path / "b", 2),
    ]
    with pytest.raises(TiplError, match=r"^this cannot be used that cannot be used$"):
        run_in_processes(either, tasks, 1, list("abcd"))
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_an_error_that_cannot_be_pickled_comes_out_as_text_and_the_others_keep_what_they_have(tmp_path: Path):
    tasks = [(until_stopped, tmp_path / "kept"), (break_down, tmp_path / "kept.begun")]
    with pytest.raises(RuntimeError, match=r"(?s)näh"):
        run_in_processes(either, tasks, 2, ["a", "b"])
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            signal.SIGKILL,
            r"of trial 7, was killed by SIGKILL, as happens where memory runs out; .* the same command goes",
        ),
        (signal.SIGSEGV, "of trial 7, was killed by SIGSEGV; what was committed stays"),
    ],
)
def test_a_killed_process_is_one_line_and_the_others_keep_what_they_have(number: int, words: str, tmp_path: Path):
    """Also one that is killed while it writes: `until_stopped` always does."""
    tasks = [(until_stopped, tmp_path / "kept"), (die, number, tmp_path / "kept.begun")]
    with pytest.raises(TiplError, match=words):
        run_in_processes(either, tasks, 2, ["trial 3", "trial 7"])
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_process_that_is_killed_in_the_middle_of_a_message_leaves_no_half_of_one(tmp_path: Path):
    mark = tmp_path / "a"

    def kill(task: int, numbers: tuple[float, ...]) -> None:
        assert numbers == (1.0,) * 500
        wait_until(lambda: mark.with_suffix(".begun").exists())
        with contextlib.suppress(ProcessLookupError):  # more of its news may lie in the pipe
            os.kill(pids([mark])[0], signal.SIGKILL)

    with pytest.raises(TiplError, match="was killed by SIGKILL"):
        run_in_processes(until_stopped, [(mark,)], 1, ["trial 1"], kill)


def test_a_process_that_leaves_says_its_exit_code():
    with pytest.raises(TiplError, match="of trial 1, ended by itself with exit code 3"):
        run_in_processes(leave, [()], 1, ["trial 1"])


def test_a_process_that_is_terminated_keeps_what_it_has_and_the_parent_says_so(tmp_path: Path):
    def terminate(task: int, numbers: tuple[float, ...]) -> None:
        os.kill(int((tmp_path / "kept.begun").read_text()), signal.SIGTERM)

    with pytest.raises(TiplError, match="the process of trial 1 was told to stop"):
        run_in_processes(until_stopped, [(tmp_path / "kept",)], 1, ["trial 1"], terminate)
    assert (tmp_path / "kept").read_text() == "kept"


def test_one_that_does_not_stop_in_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As is one that was stopped by SIGSTOP and hears nothing."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    tasks = [(deaf, tmp_path / "deaf"), (break_down, tmp_path / "deaf.begun")]
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        run_in_processes(either, tasks, 2, ["a", "b"])
    assert time.monotonic() - began < LIMIT
    assert not runs(int((tmp_path / "deaf.begun").read_text()))


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_processes import deaf, until_stopped
from tipl.processes import run_in_processes
if __name__ == "__main__":
    try:
        run_in_processes({work}, [(Path(path),) for path in sys.argv[1:]], 2, sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted")
"""


STARTED: list[int] = []


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """Whatever a test that fails has left running."""
    yield
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop(), signal.SIGKILL)


def start(work: str, marks: list[Path], tmp_path: Path) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), work=work))
    process = subprocess.Popen(
        [sys.executable, script, *marks], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    STARTED.append(process.pid)
    wait_until(lambda: all(mark.with_suffix(".begun").exists() for mark in marks))
    return process


def pids(marks: list[Path]) -> list[int]:
    wait_until(lambda: all(mark.with_suffix(".begun").read_text() for mark in marks))
    return [int(mark.with_suffix(".begun").read_text()) for mark in marks]


def test_ctrl_c_reaches_a_script_once_its_processes_have_kept_what_they_have(tmp_path: Path):
    marks = [tmp_path / "a", tmp_path / "b"]
    process = start("until_stopped", marks, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    out, error = process.communicate(timeout=LIMIT)
    assert (out, error, process.returncode) == ("interrupted\n", "", 0)
    assert [mark.read_text() for mark in marks] == ["kept", "kept"] and not any(map(runs, pids(marks)))


def test_one_that_has_told_of_no_work_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    done: list[float] = []
    monkeypatch.setattr(processes.os, "_exit", lambda code: done.append(0.0))
    monkeypatch.setattr(processes.time, "sleep", done.append)
    (orders, ours), (_, news) = multiprocessing.Pipe(duplex=False), multiprocessing.Pipe(duplex=False)
    ours.close()
    parent = Parent(orders, news)
    parent._watch()
    assert done == [0.0]
    parent.tell([1.0])
    parent._watch()
    assert done == [0.0, processes.GRACE_SECONDS, 0.0]


def test_after_an_end_by_force_python_says_nothing_of_its_own(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os\nfrom multiprocessing import resource_tracker\nfrom tipl import processes\n"
        "with processes._starting():\n    pass\n"
        "kept = multiprocessing.get_context('spawn').Semaphore()\n"
        "resource_tracker.register('/not-there', 'semaphore')\nos._exit(3)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (3, "")  # once Python's own process has ended, which has stderr too


def test_a_process_that_is_held_up_keeps_nobody_from_stopping(tmp_path: Path):
    """As by SIGSTOP: it hears of nothing."""
    marks = [tmp_path / "a", tmp_path / "b"]
    process = start("until_stopped", marks, tmp_path)
    began = pids(marks)
    os.kill(began[0], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT)[0] == "interrupted\n"
    wait_until(lambda: not any(map(runs, began)))
    assert marks[1].read_text() == "kept"


@pytest.mark.parametrize("work", ["until_stopped", "deaf"])
def test_no_process_outlives_a_parent_that_is_killed(work: str, tmp_path: Path):
    """Whether its pipe is full or nothing is told."""
    marks = [tmp_path / "a", tmp_path / "b"]
    process = start(work, marks, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    wait_until(lambda: not any(map(runs, pids(marks))))


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "thread"])
def test_it_starts_from_wherever_python_runs(how: str, tmp_path: Path):
    """A script without a main guard too, whose work is not done again in each process."""
    call = "run_in_processes(tell_and_write, [(Path(sys.argv[1]), 1)], 1, ['a'])"
    if how == "thread":
        call = f"import threading\nthread = threading.Thread(target=lambda: {call})\nthread.start()\nthread.join()"
    code = (
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tipl.processes import run_in_processes\nfrom test_processes import tell_and_write\n"
        f"print('once')\n{call}\nprint('twice')\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    words = {"script": [str(script)], "-c": ["-c", code], "stdin": ["-"], "thread": [str(script)]}[how]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "mark")], input=code if how == "stdin" else "", text=True,
        capture_output=True, timeout=3 * LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\ntwice\n", "")
    assert (tmp_path / "mark").exists()


def test_a_guarded_script_is_imported_for_what_it_defines(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tipl.processes import run_in_processes\n"
        "def work(parent, path):\n    path.write_text('defined here')\n"
        "if __name__ == '__main__':\n    run_in_processes(work, [(Path(sys.argv[1]),)], 1, ['a'])\n"
    )
    subprocess.run([sys.executable, script, tmp_path / "mark"], check=True, timeout=3 * LIMIT)
    assert (tmp_path / "mark").read_text() == "defined here"


def test_a_daemon_is_told_what_to_do_instead():
    code = """
import multiprocessing
from tipl.processes import run_in_processes
def work():
    try:
        run_in_processes(print, [()], 1, ["a"])
    except ValueError as error:
        return str(error)
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.apply(work))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.startswith("this process is a daemon") and "ProcessPoolExecutor" in done.stdout


def test_a_pool_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text("""
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from tipl.processes import end_with

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, end_with, (os.getpid(),)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
""")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + LIMIT
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
