"""How small and how fast lossless codecs make the snapshots of a store: the choice behind `tipl.store.CODEC`.

In: a store.  Out: a table: ratio of raw to packed bytes, raw MB packed and unpacked in a second of one core.

    python benchmarks/codecs.py STORE [--megabytes 16]

Blocks of as many snapshots as the store's own chunks are taken from trials and times spread over the store. Every
contender is blosc after an arrangement of the block's bits, with the checksum that the store adds; time is the
processor's, arrangement included. "Time fastest" is what zarr reads by itself through its transpose codec; XOR with
the snapshot before would need code of ours. Every block is unpacked and compared bit by bit.
"""

import argparse
import itertools
import time
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc

from tipl.store import CODEC, Store

MIB = 1 << 20
ARRANGEMENTS = ("as it is", "time fastest", "XOR previous")
SHUFFLES = {"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
SETTINGS = (("lz4", 5, 0), ("zstd", 1, 0), *(("zstd", level, MIB) for level in (1, 2, 3, 5, 7, 9)))


def arrange(block_TP: np.ndarray, arrangement: str) -> np.ndarray:
    """A block's bits, uint32 [T, P], in the order in which blosc gets them."""
    if arrangement == "time fastest":
        return np.ascontiguousarray(block_TP.T)
    arranged = block_TP.copy()
    if arrangement == "XOR previous":
        arranged[1:] ^= block_TP[:-1]
    return arranged


def restore(flat: np.ndarray, shape: tuple[int, int], arrangement: str) -> np.ndarray:
    """The inverse of `arrange`."""
    if arrangement == "time fastest":
        return np.ascontiguousarray(flat.reshape(shape[::-1]).T)
    block_TP = flat.reshape(shape).copy()
    if arrangement == "XOR previous":
        np.bitwise_xor.accumulate(block_TP, axis=0, out=block_TP)
    return block_TP


def measure(blocks: list[np.ndarray], arrangement: str, blosc: Blosc) -> tuple[float, float, float]:
    """Ratio, MB/s packed, MB/s unpacked, over all blocks."""
    raw = packed = 0
    packing = unpacking = 0.0
    for block_TP in blocks:
        start = time.process_time()
        payload = blosc.encode(arrange(block_TP, arrangement))
        checksum = google_crc32c.value(payload)
        middle = time.process_time()
        assert google_crc32c.value(payload) == checksum
        restored = restore(np.frombuffer(blosc.decode(payload), np.uint32), block_TP.shape, arrangement)
        unpacking += time.process_time() - middle
        packing += middle - start
        assert np.array_equal(restored, block_TP)
        raw += block_TP.nbytes
        packed += len(payload) + 4
    return raw / packed, raw / 1e6 / packing, raw / 1e6 / unpacking


def sample(path: Path, megabytes: float) -> list[np.ndarray]:
    """Blocks of a chunk's length, uint32 [T, P], about as many bytes as asked for, spread over the trials."""
    store = Store.open(path)
    seeds = store.seeds
    length = min(
        zarr.open_array(path / "trials" / str(seeds[0]) / "weights", mode="r").chunks[0],
        min(store.trial(seed).committed for seed in seeds) // 8 * 8,  # blosc's bitshuffle takes multiples of 8
    )
    count = max(3, round(megabytes * 1e6 / (4 * length * store.trial(seeds[0]).spec.size)))
    places = np.linspace(0, 1, count)
    blocks = []
    for number, place in enumerate(places):
        trial = store.trial(seeds[number % len(seeds)])
        start = round(place * (trial.committed - length))
        blocks.append(trial.weights(start, start + length).view(np.uint32))
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare lossless codecs on the weights of a store.")
    parser.add_argument("store", type=Path, metavar="STORE")
    parser.add_argument("--megabytes", type=float, default=16, help="how much to read (at least three blocks)")
    arguments = parser.parse_args()

    blocks = sample(arguments.store, arguments.megabytes)
    raw = sum(block.nbytes for block in blocks)
    print(f"{len(blocks)} blocks of {blocks[0].shape[0]} snapshots × {blocks[0].shape[1]} weights, {raw / 1e6:.1f} MB")
    print(f"{'arrangement':14}{'shuffle':12}{'codec':8}{'block':>7}{'ratio':>8}{'write MB/s':>12}{'read MB/s':>11}")
    for arrangement, (shuffle, number), (cname, clevel, blocksize) in itertools.product(
        ARRANGEMENTS, SHUFFLES.items(), SETTINGS
    ):
        blosc = Blosc(cname, clevel, number, blocksize)
        ratio, write, read = measure(blocks, arrangement, blosc)
        ours = (CODEC.cname, CODEC.clevel, CODEC.shuffle, CODEC.blocksize) == (cname, clevel, number, blocksize)
        mark = "  <- the store's" if ours and arrangement == "time fastest" else ""
        block = "1 MiB" if blocksize else "auto"
        print(
            f"{arrangement:14}{shuffle:12}{f'{cname} {clevel}':8}{block:>7}{ratio:8.3f}{write:12.0f}{read:11.0f}{mark}",
            flush=True,
        )


if __name__ == "__main__":
    main()
