"""Which images make which batch: functions of (seed, epoch, place) alone, nothing is drawn from a running generator.

So any place of any epoch can be gone to and gives the same batch again, whoever decodes it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["VARYING", "Sampling", "epoch_order", "mirror_bits"]

# what shows an image in more views than plain and mirrored, where it is not 0
VARYING = ("augment", "mix", "jpeg", "cutout")


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation (count,) int64 of `range(count)` that belongs to (seed, epoch).

    It sorts raw Philox words: numpy promises that these stay the same from release to release, and promises nothing
    about `permutation`; a run may be resumed under another release.
    """
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable")


def mirror_bits(positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return (n,) bool, which of the images at `positions` (n,) int64 are mirrored in that epoch: half of them."""
    key = np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)[0]
    # the finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit
    words = (np.asarray(positions).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ key
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words >> np.uint64(63)).astype(bool)


class Sampling(NamedTuple):
    """Which images make which batch, and how they are seen."""

    count: int
    batch_size: int
    seed: int
    mirror: bool
    augment: float
    mix: float
    jpeg: float
    cutout: float
    part: int
    num_parts: int

    @property
    def varies(self) -> bool:
        """Return whether an image is seen in more views than plain and mirrored."""
        return any(getattr(self, name) for name in VARYING)

    @property
    def batches(self) -> int:
        """Return the number of batches in an epoch: whole ones, as many for every part."""
        return self.count // (self.batch_size * self.num_parts)

    def candidates(self, order: np.ndarray, batch: int, spare: int) -> np.ndarray:
        """Return (N + spare,) int64: the N of a batch, and those that follow them in `order`, around its end.

        The parts share out one global batch, so their number does not change its images.
        """
        start = (batch * self.num_parts + self.part) * self.batch_size
        return order.take(np.arange(start, start + self.batch_size + spare), mode="wrap")

    def mirrored(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Return (n,) bool."""
        return mirror_bits(positions, self.seed, epoch) if self.mirror else np.zeros(len(positions), dtype=bool)
