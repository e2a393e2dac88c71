"""Verification of 6,000 pairs against the loops of InsightFace's `verification.py`.

    OPENBLAS_NUM_THREADS=1 python benchmarks/verification.py [--pairs 6000] [--dimensions 512] [--rounds 5]

`loops` is written to the original's scheme: for each of ten folds, each of 400 thresholds for accuracy and of 4,000 for
FAR is held against every pair. Both give accuracy and TAR at FAR 1e-3; ours AUC, EER and TAR at the other FARs
besides. They take turns; figures are medians of CPU time, of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from vargface.eval.verification import verify


def loops(embeddings: np.ndarray, same: np.ndarray, folds: int = 10, far: float = 1e-3) -> tuple[float, float]:
    """Return accuracy and TAR at `far`, threshold by threshold."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = np.square(unit[0::2] - unit[1::2]).sum(axis=1)
    accuracies, tars = [], []
    for test in np.array_split(np.arange(len(same)), folds):
        train = np.setdiff1d(np.arange(len(same)), test)
        thresholds = np.arange(0, 4, 0.01)
        found = [np.mean((distances[train] < threshold) == same[train]) for threshold in thresholds]
        best = thresholds[int(np.argmax(found))]
        accuracies.append(np.mean((distances[test] < best) == same[test]))
        thresholds = np.arange(0, 4, 0.001)
        fars = np.array([np.mean(distances[train][~same[train]] < threshold) for threshold in thresholds])
        at = 0.0
        if fars.max() >= far:
            left = min(int(np.searchsorted(fars, far, side="right")) - 1, len(fars) - 2)
            share = (far - fars[left]) / (fars[left + 1] - fars[left])
            at = thresholds[left] + share * (thresholds[left + 1] - thresholds[left])
        tars.append(np.mean(distances[test][same[test]] < at))
    return float(np.mean(accuracies)), float(np.mean(tars))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    same = np.arange(options.pairs) % 2 == 0
    first = rng.normal(size=(options.pairs, options.dimensions))
    second = np.where(same[:, None], first, 0) + 3 * rng.normal(size=first.shape)
    embeddings = np.stack([first, second], axis=1).reshape(-1, options.dimensions).astype(np.float32)
    seconds: dict[str, list[float]] = {"vargface": [], "loops": []}
    for _ in range(options.rounds):
        for name, function in (("vargface", verify), ("loops", loops)):
            start = time.process_time()
            found = function(embeddings, same)
            seconds[name].append(time.process_time() - start)
            figures = found if name == "loops" else (found.accuracy, found.tar)
            print(f"{name:<9} accuracy {figures[0]:.6f}  TAR {figures[1]:.6f}  {1e3 * seconds[name][-1]:.1f} ms")
    ours, theirs = (statistics.median(seconds[name]) for name in ("vargface", "loops"))
    print(
        f"{options.pairs:,} pairs: vargface {1e3 * ours:.1f} ms, loops {1e3 * theirs:.1f} ms, ratio {theirs / ours:.0f}"
    )


if __name__ == "__main__":
    main()
