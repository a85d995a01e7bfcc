"""Random numbers that are a function of what they are for: seed, epoch, sample and operation, and of nothing else.

There is no generator with a state, so neither the order in which samples come, nor how they are batched, nor how many
threads prepare them, nor an interruption can change a draw. The numbers come from Philox4x32-10, a counter-based
generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written here in numpy
integers: the same bits on every machine and with every version of numpy. Seed and operation make the key; sample,
epoch and a running block number make the counter.

Not for secrets.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_LIMIT = 1 << 32
_BLOCK = 1 << 14  # samples whose order is drawn at once


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """(n, 4) random 32-bit words, held in uint64, for (n, 4) counter words and a key of two words.

    Ten rounds of Philox4x32 as in the paper's Random123 library, whose known answers are in the tests.
    """
    c0, c1, c2, c3 = counter.T
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2  # products of two words fit 64 bits
        c0, c1, c2, c3 = (right >> _WORD) ^ c1 ^ np.uint64(k0), right & _LOW, (left >> _WORD) ^ c3 ^ np.uint64(k1), left & _LOW
        k0, k1 = (k0 + _WEYL[0]) % _LIMIT, (k1 + _WEYL[1]) % _LIMIT
    return np.stack([c0, c1, c2, c3], axis=1)


def uniforms(seed: int, epoch: int, samples: Integers, operation: str, count: int) -> Floats:
    """(n, count) float64 in [0, 1): `count` numbers for each of the (n,) int64 sample numbers.

    The first columns do not depend on `count`. Each number has 53 random bits, taken from two words.
    """
    assert 0 <= epoch < _LIMIT, f"an epoch number fits 32 bits, got {epoch}"
    sample = np.asarray(samples, dtype=np.int64).astype(np.uint64)
    n, blocks = len(sample), (count + 1) // 2
    counter = np.empty((n, blocks, 4), np.uint64)
    counter[..., 0] = (sample & _LOW)[:, None]
    counter[..., 1] = (sample >> _WORD)[:, None]
    counter[..., 2] = epoch
    counter[..., 3] = np.arange(blocks, dtype=np.uint64)
    words = philox4x32(counter.reshape(-1, 4), _key(seed, operation)).reshape(n, 2 * blocks, 2)
    high, low = words[:, :count, 0] >> np.uint64(5), words[:, :count, 1] >> np.uint64(6)  # 27 and 26 bits
    return (high.astype(np.float64) * 2.0**26 + low.astype(np.float64)) * 2.0**-53


def integers(u: Floats, below: Integers | int) -> Integers:
    """Uniform integers in [0, below) from uniforms in [0, 1), as int64."""
    return np.floor(u * below).astype(np.int64)


def permutation(seed: int, epoch: int, n: int) -> Integers:
    """(n,) int64, the order of an epoch: the samples sorted by a uniform of each.

    A stable sort of our own numbers gives one answer; the shuffle of a numpy Generator may change between versions.
    """
    keys = np.empty(n)
    for start in range(0, n, _BLOCK):  # a draw takes 130 bytes while it is made, and keeps 8
        stop = min(start + _BLOCK, n)
        keys[start:stop] = uniforms(seed, epoch, np.arange(start, stop), "order", 1)[:, 0]
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def beta(seed: int, epoch: int, samples: Integers, operation: str, alpha: float) -> Floats:
    """(n,) float64 in [0, 1] from Beta(alpha, alpha): the inverse distribution function at one uniform of each sample.

    `samples` may number anything, for example the windows of an epoch. The last bits follow scipy's betaincinv.
    """
    u = uniforms(seed, epoch, samples, operation, 1)[:, 0]
    return np.asarray(betaincinv(alpha, alpha, u), dtype=np.float64)


def derived_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) for generators that need one, as a hash of the parts in their order; 1 and "1" differ."""
    return int.from_bytes(_digest(*parts), "little") >> 1


def _key(seed: int, operation: str) -> tuple[int, int]:
    """Two words from all bits of seed and operation."""
    key = int.from_bytes(_digest(seed, operation), "little")
    return key % _LIMIT, key // _LIMIT


def _digest(*parts: int | str) -> bytes:
    """BLAKE2b-64 of the parts, each with its type and length in bytes so that no two lists of parts read the same."""
    text = "".join([f"{type(part).__name__}:{len(str(part).encode())}:{part}" for part in parts])
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
