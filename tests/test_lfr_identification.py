"""Identification against brute force: ranks, and TPIR at FPIR."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lfr_scoring import faces, files, small_sets

from vargface.errors import InputError
from vargface.eval.lfr import identification
from vargface.eval.lfr.identification import Probing, finish, run

RANKS = (1, 2, 5)
FPIRS = ("0.01", "0.1", "0.5")


def naive(rows, labels):
    """(rank among the gallery, rank with the distractors, mate's score) of each probe; highest score of strangers."""
    wide = np.asarray(rows, np.float32).astype(np.float64)
    labels = list(labels)

    def score(i, j):
        return (wide[i] * wide[j]).sum()

    gallery = {label: labels.index(label) for label in set(labels) if label >= 0}
    strangers = [row for row, label in enumerate(labels) if label < 0]
    probes = []
    for row, label in enumerate(labels):
        if label < 0 or gallery[label] == row:
            continue
        mate = score(row, gallery[label])
        ahead = sum(score(row, other) >= mate for person, other in gallery.items() if person != label)
        with_strangers = ahead + sum(score(row, other) >= mate for other in strangers)
        probes.append((1 + ahead, 1 + with_strangers, mate))
    return probes, [max(score(row, other) for other in gallery.values()) for row in strangers]


def identify(features, labels, *, ranks=RANKS, fpirs=FPIRS, on_unit=None):
    probing = Probing.begun(features, labels)
    run(probing, on_unit=on_unit)
    return finish(probing, ranks=ranks, fpirs=fpirs)


def assert_is_brute_force(found, rows, labels):
    probes, strangers = naive(rows, labels)
    assert (found.probes, found.distractors) == (len(probes), len(strangers))
    for k in RANKS:
        assert found.rank[k] == np.mean([rank <= k for rank, _, _ in probes])
        if strangers:
            assert found.rank_with_distractors[k] == np.mean([rank <= k for _, rank, _ in probes])
    for fpir in FPIRS:
        admitted = math.floor(float(fpir) * len(strangers) + 1e-12)
        if admitted < 1:
            assert math.isnan(found.tpir[fpir])
            continue
        threshold = sorted(strangers, reverse=True)[admitted]
        assert found.thresholds[fpir] == threshold
        assert found.tpir[fpir] == np.mean([rank == 1 and mate > threshold for rank, _, mate in probes])


@pytest.mark.parametrize("tile", [32, 1024])
def test_equals_brute_force(tmp_path, monkeypatch, tile):
    monkeypatch.setattr(identification, "TILE", tile)
    rows, labels = faces(rows=300, people=20, noise=1.8)
    done = []
    found = identify(*files(tmp_path, rows, labels), on_unit=done.append)
    assert sum(done) == found.probes * (found.gallery + found.distractors) + found.distractors * found.gallery
    assert 0.1 < found.rank[1] < found.rank[5] < 1
    assert_is_brute_force(found, rows, labels)


@settings(max_examples=60, deadline=None)
@given(small_sets(), st.integers(2, 9))
def test_equals_brute_force_on_ties(tmp_path_factory, small, tile):
    rows, labels, _, _ = small
    known = [label for label in labels if label >= 0]
    if len(set(known)) == len(known):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identification, "TILE", tile)
        names = files(tmp_path_factory.mktemp("small"), rows, labels)
        patch.setattr(identification, "CHUNK_SCORES", 3)
        assert_is_brute_force(identify(*names), rows, labels)


def test_without_distractors_there_are_ranks_alone(tmp_path):
    rows, labels = faces(rows=100)
    labels = np.where(labels < 0, np.arange(100) % 7, labels)
    found = identify(*files(tmp_path, rows, labels), ranks=(1,), fpirs=("0.1",))
    assert found.as_dict()["tpir"] == {"0.1": None}
    assert found.as_dict()["rank_with_distractors"] == {"1": None}
    assert 0 < found.rank[1] < 1


def test_nobody_twice_is_refused(tmp_path):
    rows, _ = faces(rows=50)
    with pytest.raises(InputError, match=r"labels.txt: no two images of one person"):
        identify(*files(tmp_path, rows, np.arange(50)))


def test_what_was_stopped_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(identification, "TILE", 64)
    rows, labels = faces(rows=300, people=20, noise=1.8)
    names = files(tmp_path, rows, labels)
    stopped, units = Probing.begun(*names), []

    def stop(pairs):
        units.append(pairs)
        if len(units) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stopped, on_unit=stop)
    with pytest.raises(ValueError, match="units are missing"):
        finish(stopped)
    again = Probing.begun(*names)
    assert again.go_on(stopped.arrays())
    run(again, on_unit=units.append)
    assert len(units) == len(again.done) == 5
    assert finish(again).as_dict() == identify(*names, ranks=identification.RANKS, fpirs=identification.FPIRS).as_dict()
    assert not Probing.begun(*files(tmp_path, rows[::-1], labels)).go_on(stopped.arrays())
    with pytest.raises(KeyError):
        again.go_on({})
    with pytest.raises(ValueError, match="another shape"):
        again.go_on({**stopped.arrays(), "scores": np.zeros(3)})
