"""What a policy's networks compute, as compiled kernels, and where compiled kernels are kept.

In: flat float32 weights, layer sizes, inputs.  Out: outputs of the networks, drawn actions.
"""

import contextlib
import fcntl
import functools
import hashlib
import math
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numba
import numpy as np
from numba import njit
from numba.core.caching import IndexDataCacheFile

from tipl.config.presets import Activation

# Reassociation lets LLVM vectorize sums and fuse multiply-adds; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

F1 = np.float32(1)
TANH, RELU, ELU = range(3)  # activations as kernels know them, in the order of `Activation`
_PATIENCE_SECONDS = 300.0  # for a process that compiles; it may be one that gave up and lives on
_INLINED = ("kernels.py", "ppo.py")  # the files whose kernels are compiled into kernels of other files


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` with these options, as every kernel is compiled that is kept on disk.

    numba believes a kept kernel while the kernel's own file is unchanged, even if it holds code of a file that has
    changed. So each state of `_INLINED` has a folder of its own.

    A kernel is compiled into the kernels that call it. Left as a function of its own it is in several objects under
    one weak name, and which of these copies runs, with what last bits, differs between the process that compiles and
    those that load.

    x / 0 is infinite. Python's rule, an exception, is a branch that LLVM does not vectorize: with it the update takes
    twice as long. A kernel runs without Python's lock, so a Ctrl-C is answered while it does.
    """
    folder = _kernels_folder()
    options = {"nogil": True, "error_model": "numpy", "forceinline": True, **options}

    def compile_later(function: Callable[..., Any]) -> Callable[..., Any]:
        config: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]
        users = config.CACHE_DIR
        config.CACHE_DIR = str(folder)
        try:
            compiled = njit(cache=folder is not None, **options)(function)
            kept = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
            if isinstance(kept, IndexDataCacheFile):  # none is kept with NUMBA_DISABLE_JIT, or by another numba
                kept.__class__ = _KeptKernel
            return compiled
        finally:
            config.CACHE_DIR = users

    return compile_later


class _KeptKernel(IndexDataCacheFile):
    """numba's files of one kernel, with a checksum in each: one that is damaged is compiled again.

    Of processes that find none, one compiles while the others wait: a kernel is compiled once on a machine.
    """

    _lock: int | None = None

    def load(self, key: Any) -> Any:
        found = self._kept(key)
        if found is None and self._lock is None:
            self._lock = _locked(Path(f"{self._index_path}.lock"))
            found = self._kept(key)
            if found is not None:
                self._unlock()
        return found

    def save(self, key: Any, data: Any) -> None:
        try:
            super().save(key, data)
        finally:
            self._unlock()

    def _kept(self, key: Any) -> Any:
        name = self._load_index().get(key)
        return None if name is None else _unpickled(Path(self._data_path(name)))

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _load_index(self) -> dict[Any, str]:
        found = _unpickled(Path(self._index_path), len(pickle.dumps(self._version, protocol=-1)))
        return found[1] if found is not None and found[0] == self._source_stamp else {}

    def _dump(self, obj: Any) -> bytes:
        content = super()._dump(obj)
        return hashlib.sha256(content).digest() + content


def _locked(path: Path) -> int | None:
    """Return the lock on a file, once nobody else has it; None where there are no locks, or it takes too long."""
    until = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                time.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _unpickled(path: Path, start: int = 0) -> Any:
    """Return what `_KeptKernel` wrote to a file, from a byte on; None where it is not there or is damaged."""
    try:
        content = path.read_bytes()[start:]
        return pickle.loads(content[32:]) if hashlib.sha256(content[32:]).digest() == content[:32] else None
    except OSError:
        return None


@functools.cache
def _kernels_folder() -> Path | None:
    """The first of these folders that can be written to, for kernels that are compiled once on a machine.

    NUMBA_CACHE_DIR where the user has set it, beside the package, in the user's cache, in the folder for temporary
    files; None: every process compiles for itself. What is kept there is code, so a folder in a place that is open to
    all has to be the user's own and closed to others.
    """
    package, home = Path(__file__).parent, Path(os.path.expanduser("~"))
    state = hashlib.sha256(b"".join((package / name).read_bytes() for name in _INLINED)).hexdigest()[:16]
    users = numba.config.CACHE_DIR  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    private = Path(tempfile.gettempdir()) / f"tipl-{os.getuid()}"
    places = [Path(users)] if users else []
    places += [package / "__pycache__", Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "tipl", private]
    for place in places:
        folder = place / f"tipl-{state}"
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = place.lstat()
            if place == private and (found.st_uid != os.getuid() or found.st_mode & 0o22):
                continue
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def activation_code(activation: Activation) -> int:
    """What kernels call it."""
    return get_args(Activation).index(activation)


@kernel(fastmath=FASTMATH)
def sampled_action(logits, noise):
    """The discrete action argmax(z + g), the first of equals; both [F]."""
    action = 0
    for k in range(1, len(logits)):
        if logits[k] + noise[k] > logits[action] + noise[action]:
            action = k
    return action


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def tanh32(x):
    """tanh of a float32 to 4e-7, in arithmetic that LLVM vectorizes (libm's tanh is one call a number).

    A rational function x·p(x²)/q(x²) of degree 4/4 in x², fitted for least relative error on [-9, 9]. It is held at ±8,
    within 3e-7 of ±1: beyond, rounding takes it over 1, where the derivative 1 − tanh² is negative. NaN stays NaN.
    """
    x = min(max(x, np.float32(-8)), np.float32(8)) if x == x else x
    s = x * x
    p = np.float32(1.3355200265616488e-08)
    p = p * s + np.float32(2.060952269604112e-05)
    p = p * s + np.float32(0.0034956170648061855)
    p = p * s + np.float32(0.13381050786285503)
    p = p * s + np.float32(0.9999999796765364)
    q = np.float32(7.776794219335686e-07)
    q = q * s + np.float32(0.0003285680609103197)
    q = q * s + np.float32(0.0258770946245834)
    q = q * s + np.float32(0.4671436645559244)
    q = q * s + F1
    return x * p / q


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def relu32(x):
    """max(x, 0) of a float32. NaN stays NaN."""
    return np.float32(0) if x < 0 else x


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def elu32(x):
    """x where it is positive, eˣ − 1 elsewhere, of a float32: torch's ELU. NaN stays NaN."""
    return x if x > 0 else np.float32(math.expm1(x))


@kernel(fastmath=FASTMATH)
def forward_one(theta, offset, sizes, x, scratch, out, activation=TANH):
    """One input through one network: the matrix-vector products of a rollout step.

    Args:
        theta: flat weights; the network begins at `offset`. Float32, as all else.
        sizes: [layers + 1].
        x: [sizes[0]].
        scratch: [2, max(sizes)], overwritten.
        out: [sizes[-1]], overwritten with the linear output.
        activation: of the hidden layers, as `activation_code` has it.
    """
    layers = len(sizes) - 1
    source = x
    for layer in range(layers):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        bias = offset + fan_out * fan_in
        target = out if layer == layers - 1 else scratch[layer % 2]
        for j in range(fan_out):
            row = theta[offset + j * fan_in : offset + (j + 1) * fan_in]
            total = np.float32(0)
            for i in range(fan_in):
                total += row[i] * source[i]
            target[j] = total + theta[bias + j]
        if layer < layers - 1:
            if activation == TANH:
                for j in range(fan_out):
                    target[j] = tanh32(target[j])
            elif activation == RELU:
                for j in range(fan_out):
                    target[j] = relu32(target[j])
            else:
                for j in range(fan_out):
                    target[j] = elu32(target[j])
        source = target
        offset = bias + fan_out


@kernel(fastmath=FASTMATH)
def forward_batch(theta, offset, sizes, x, acts, activation=TANH):
    """A batch through one network by matrix products, every layer's output kept for the gradient.

    Args:
        theta, offset, sizes, activation: as in `forward_one`.
        x: [B, sizes[0]].
        acts: [≥ B · sum(sizes[1:])] scratch; layer l's output stands at B · sum(sizes[1:l]), shape [B, sizes[l]].
    Returns:
        The last layer's output [B, sizes[-1]], a view of `acts`.
    """
    batch = x.shape[0]
    layers = len(sizes) - 1
    start = 0
    source = x
    for layer in range(layers):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        weight = theta[offset : offset + fan_out * fan_in].reshape(fan_out, fan_in)
        bias = theta[offset + fan_out * fan_in : offset + fan_out * (fan_in + 1)]
        target = acts[start : start + batch * fan_out].reshape(batch, fan_out)
        np.dot(source, weight.T, target)
        if layer == layers - 1:
            for b in range(batch):
                for j in range(fan_out):
                    target[b, j] += bias[j]
        elif activation == TANH:
            for b in range(batch):
                for j in range(fan_out):
                    target[b, j] = tanh32(target[b, j] + bias[j])
        elif activation == RELU:
            for b in range(batch):
                for j in range(fan_out):
                    target[b, j] = relu32(target[b, j] + bias[j])
        else:
            for b in range(batch):
                for j in range(fan_out):
                    target[b, j] = elu32(target[b, j] + bias[j])
        source = target
        start += batch * fan_out
        offset += fan_out * (fan_in + 1)
    return source
