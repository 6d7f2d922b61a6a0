"""Tasks on the nodes of a Ray cluster, one core each.

In: tasks, as run.py has them.  Out: what they tell; the error of one that failed.

Ray starts the processes, finds free cores and runs a task again whose node is lost. What tasks tell, and the order to
stop, are notes in the cluster's own key-value store: an actor for them would be a process more in each call, for which
a worker has to wait. Every task says first which libraries it has: with others its bits would be others too. Ray does
not heed the limits of Slurm (its issue 28586): each node has to be started with as many cores as are its own
(`ray start --num-cpus`), and each task asks for one.
"""

import contextlib
import functools
import importlib.metadata
import logging
import os
import platform
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tipl.config.env_spec import TYPED
from tipl.errors import TiplError
from tipl.processes import GRACE_SECONDS, Numbers, Parent, outcome_of

_LOOK_SECONDS = 0.2
_KNOCK_SECONDS = 10.0
_RETRIES = 20  # of a task whose node or process is lost
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_BEGIN = {"env_vars": dict.fromkeys(_THREADS, "1")}
"""What workers begin with. Ray starts some when it is joined, which a task takes that asks for just this."""
_COMPUTE = ("tipl", "numpy", "numba", "scipy", "envpool", "gymnasium", "mujoco", "torch", "safetensors")


@contextlib.contextmanager
def cluster(address: str, workers: int | None) -> Iterator["Cluster"]:
    """Join a Ray cluster, unless this process is in one already, and leave it at the end.

    Raises:
        TiplError: Ray is not installed, or there is no cluster at this address.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning about GPUs, which are left alone
    try:
        import ray
    except ImportError as error:
        raise TiplError("Ray is not installed; pip install 'tipl[ray]' or drop --executor ray.") from error
    ours = not ray.is_initialized()
    if ours:
        try:
            _knock(address)
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="tipl", runtime_env=_BEGIN
            )
        except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
            raise TiplError(
                f"No Ray cluster answers at {address} ({str(error).splitlines()[0][:200]}); start one with `ray start "
                "--head --num-cpus N`, or give --ray-address HOST:PORT."
            ) from error
    try:
        yield Cluster(ray, workers)
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at an address, for which Ray itself would wait minutes."""
    if address == "auto":
        with contextlib.suppress(ImportError, AttributeError):  # of another Ray
            from ray._private import services

            address = services.get_ray_address_from_environment("auto", None)
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError("no cluster was started here" if address in (None, "auto") else "that is not HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS):
        pass


class Cluster:
    """The cluster that this process is in."""

    def __init__(self, ray: Any, workers: int | None) -> None:
        self._ray = ray
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise TiplError("The Ray cluster has no cores; start its nodes with `ray start --num-cpus N`.")
        nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
        self.slots = min(workers or cores, cores)
        self.where = f"in {{}} tasks on {nodes} Ray nodes" if nodes != 1 else "in {} tasks on one Ray node"

    def run(
        self,
        work: Callable[..., None],
        tasks: Sequence[tuple[Any, ...]],
        names: Sequence[str],
        heard: Callable[[int, Numbers], None] = lambda task, numbers: None,
        ended: Callable[[int], None] = lambda task: None,
    ) -> None:
        """See `Executor.run`; a task whose node is lost is run again on another."""
        ray = self._ray
        run = f"tipl/{secrets.token_hex(8)}"
        typed = {TYPED: os.environ[TYPED]} if TYPED in os.environ else {}
        begin_with = {"env_vars": _BEGIN["env_vars"] | typed}
        asks: Any = {"num_cpus": 1, "max_retries": _RETRIES, "scheduling_strategy": "SPREAD", "runtime_env": begin_with}
        call = ray.remote(**asks)(_call)
        waiting = list(enumerate(tasks))[::-1]
        working: dict[Any, int] = {}
        news: dict[int, bytes | None] = {}
        refusals: list[str] = []

        def begin() -> None:
            index, task = waiting.pop()
            working[call.remote(work, task, f"{run}/{index}", versions())] = index

        try:
            for _ in range(min(self.slots, len(tasks))):
                begin()
            while working:
                done, _ = ray.wait(list(working), timeout=_LOOK_SECONDS)
                for index in working.values():
                    before, news[index] = news.get(index), _read(f"{run}/{index}")
                    if (content := news[index]) and content != before:
                        heard(index, struct.unpack(f"{len(content) // 8}d", content))
                for each in done:
                    index = working.pop(each)
                    how, text = self._outcome(each, names[index])
                    if how == "bug":
                        raise RuntimeError(text)
                    if how == "stopped":
                        raise TiplError(f"the task of {names[index]} was told to stop; the same command goes on.")
                    if how == "refused":
                        refusals.append(text)
                    else:
                        ended(index)
                    if waiting:
                        begin()
        except BaseException:
            with contextlib.suppress(Exception):
                _write(f"{run}/stop", b"stop")
                ray.wait(list(working), num_returns=len(working), timeout=GRACE_SECONDS)
                for each in working:
                    ray.cancel(each, force=True)
            raise
        finally:
            with contextlib.suppress(Exception):
                _remove(run)
        if refusals:
            raise TiplError(" ".join(dict.fromkeys(refusals)))

    def _outcome(self, done: Any, name: str) -> tuple[str, str]:
        """How a task ended, and what it said.

        Raises:
            TiplError: Ray has given it up.
        """
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            raise TiplError(
                f"Ray gave up the task of {name}: {lines[-1][:300] if lines else type(error).__name__}; what was "
                "committed stays, and the same command goes on."
            ) from error


def _read(key: str) -> bytes | None:
    """Return the note of this name, None where there is none."""
    return _notes()._internal_kv_get(key, namespace="tipl")


def _write(key: str, content: bytes) -> None:
    _notes()._internal_kv_put(key, content, namespace="tipl")


def _remove(prefix: str) -> None:
    _notes()._internal_kv_del(prefix, del_by_prefix=True, namespace="tipl")


def _notes() -> Any:
    """Ray's own store of small things by name, which every process of a cluster reads and writes."""
    import ray.experimental.internal_kv as notes

    return notes


class _Far(Parent):
    """The caller of a task, as the task knows it."""

    def __init__(self, note: str) -> None:
        self._stop, self._change = threading.Event(), threading.Condition()
        self._news, self._working = None, False
        self._note, self._over = note, threading.Event()
        threading.Thread(target=self._exchange, daemon=True).start()

    def _exchange(self) -> None:
        """Tell what is new and ask whether to stop, again and again. Where no one answers any more, that says stop."""
        over = False
        while not over:
            self._over.wait(_LOOK_SECONDS)
            over = self._over.is_set()
            rows = self._news
            try:
                if rows is not None:
                    numbers = [number for row in rows for number in row]
                    _write(self._note, struct.pack(f"{len(numbers)}d", *numbers))
                if _read(f"{self._note.rpartition('/')[0]}/stop"):
                    self._stop.set()
            except Exception:
                self._stop.set()
                return
            with self._change:
                if self._news is rows:
                    self._news = None
                    self._change.notify_all()

    def _settle(self) -> None:
        self._over.set()
        super()._settle()


def _call(work: Callable[..., None], task: tuple[Any, ...], note: str, theirs: dict[str, str]) -> tuple[str, str]:
    """Call in a process of a node; how it ended, and what it said."""
    mine = versions()
    if mine != theirs:
        import ray

        name = next(name for name in theirs if mine.get(name) != theirs[name])
        return "refused", (
            f"the Ray node {ray.util.get_node_ip_address()} has {name} {mine.get(name)}, this machine {theirs[name]}; "
            "install the same on every node (pip install --requirement requirements.lock)."
        )
    return outcome_of(_Far(note), work, task)


@functools.cache
def versions() -> dict[str, str]:
    """Of what computes; the same everywhere, or the bits may be others."""
    found = {"python": platform.python_version(), "processor": platform.machine()}
    for name in _COMPUTE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
