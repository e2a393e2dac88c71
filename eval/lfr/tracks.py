"""The limits of the challenge's four tracks, and whether a network keeps them.

Two readings of "1 G" and "20 MB" are told apart. The letter: 10^9 operations, 20 * 10^6 bytes of the .params file. The
winner's, whose 1,022.9 M operations and 21.0 MB file stood on deepglint-light: 1024 * 10^6 operations and 20 * 2^20
bytes of values, names and shapes left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

__all__ = ["TRACKS", "Compliance", "Network", "Track", "compliance"]


@dataclasses.dataclass(frozen=True)
class Track:
    """A track: `giga` operations, `mega` bytes (None: no limit), `dimensions` at most; TPR is taken at `fpr`."""

    name: str
    giga: int
    mega: int | None
    dimensions: int
    fpr: str


TRACKS = (
    Track("deepglint-light", 1, 20, 512, "1e-8"),
    Track("deepglint-large", 30, None, 512, "1e-8"),
    Track("iqiyi-light", 1, 20, 512, "1e-4"),
    Track("iqiyi-large", 30, None, 512, "1e-4"),
)
# reading -> (operations of "1 G", bytes of "1 MB", whether the whole file counts or the values alone)
READINGS = {"to the letter": (10**9, 10**6, True), "as the winner's": (1024 * 10**6, 2**20, False)}


@dataclasses.dataclass(frozen=True)
class Network:
    """What the rules ask of a network."""

    flops: int
    file_bytes: int
    payload_bytes: int
    dtypes: Sequence[str]  # of its parameters
    dimensions: int


@dataclasses.dataclass(frozen=True)
class Compliance:
    """Which limits of one track, in one reading, are kept."""

    track: str
    reading: str
    flops: bool
    size: bool
    float32: bool
    dimensions: bool

    @property
    def passed(self) -> bool:
        """Return whether all are."""
        return self.flops and self.size and self.float32 and self.dimensions


def compliance(network: Network) -> list[Compliance]:
    """Return what holds of `network` for each track in each reading; operations "up to", bytes "under" the limit."""
    return [
        Compliance(
            track.name,
            reading,
            network.flops <= track.giga * giga,
            track.mega is None or (network.file_bytes if whole_file else network.payload_bytes) < track.mega * mega,
            set(network.dtypes) == {"float32"},
            network.dimensions <= track.dimensions,
        )
        for track in TRACKS
        for reading, (giga, mega, whole_file) in READINGS.items()
    ]
