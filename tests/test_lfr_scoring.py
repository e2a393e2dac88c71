"""All pairs against brute force: every threshold and TPR, in one go and in parts, exact and between bounds."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vargface.errors import InputError
from vargface.eval.lfr import pairs, plan, scoring
from vargface.eval.lfr.features import TestSet, header, normalised, open_test_set
from vargface.eval.lfr.plan import HISTOGRAM, KEPT, Plan, make_plan
from vargface.eval.lfr.scoring import Part, corrected, finish, merge, misjudged, run

FPRS = ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "0.5")


@pytest.fixture(autouse=True)
def forget():
    """Files of one name in turn are one to the cache."""
    open_test_set.cache_clear()
    yield
    open_test_set.cache_clear()


def files(folder, rows, labels) -> tuple[str, str]:
    rows = np.asarray(rows, np.float32)
    (folder / "feat.bin").write_bytes(header(*rows.shape) + rows.tobytes())
    np.savetxt(folder / "labels.txt", labels, fmt="%d")
    open_test_set.cache_clear()
    return str(folder / "feat.bin"), str(folder / "labels.txt")


def faces(rows=600, dimensions=24, people=30, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(rows) < 0.5, -1, rng.integers(0, people, rows))
    centres = rng.normal(size=(people, dimensions))
    points = np.where(labels[:, None] >= 0, centres[labels], 0) + noise * rng.normal(size=(rows, dimensions))
    return normalised(points.astype(np.float32)), labels


def all_scores(rows, labels) -> tuple[np.ndarray, np.ndarray]:
    """Float64 scores of the pairs of one person and of the others, from all pairs one by one."""
    wide = np.asarray(rows, np.float32).astype(np.float64)
    i, j = np.triu_indices(len(wide), 1)
    scores = np.concatenate(
        [(wide[i[k : k + 2048]] * wide[j[k : k + 2048]]).sum(axis=1) for k in range(0, len(i), 2048)]
    )
    same = (np.asarray(labels)[i] == np.asarray(labels)[j]) & (np.asarray(labels)[i] >= 0)
    return scores[same], scores[~same]


def naive(same, different, fpr) -> tuple[float, float, int]:
    """TPR, threshold and accepted pairs at the lowest threshold that accepts no more than `fpr` of the different."""
    thresholds, counts = np.unique(different, return_counts=True)
    accepted = len(different) - np.cumsum(counts)  # above each threshold
    most = Fraction(fpr) * len(different)
    first = next(k for k, number in enumerate(accepted.tolist()) if number <= most)
    return float(np.mean(same > thresholds[first])), float(thresholds[first]), int(accepted[first])


def scanned(plan, parts=1):
    done = []
    for index in range(1, parts + 1):
        part = Part.empty(plan, index, parts)
        run(part)
        done.append(Part.of(part.arrays()))
    return merge(done)


def result_of(features, labels, parts=1, **options):
    return finish(scanned(make_plan(features, labels, **{"fprs": FPRS, "headline": FPRS[4], **options}), parts))


def assert_is_brute_force(score, rows, labels, exact=True):
    same, different = all_scores(rows, labels)
    assert (score.positives, score.negatives) == (len(same), len(different))
    assert score.curve
    for point in score.curve:
        tpr, threshold, accepted = naive(same, different, point.fpr)
        if exact or point.exact:
            assert point.exact
            assert (point.tpr, point.threshold, point.accepted) == (tpr, threshold, accepted)
            assert (point.tpr_high, point.threshold_high, point.accepted_high) == (tpr, threshold, accepted)
        else:
            assert point.tpr <= tpr <= point.tpr_high
            assert point.threshold <= threshold <= point.threshold_high
            assert point.accepted <= accepted <= point.accepted_high <= point.admitted


# --- equal to brute force


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tile", [64, 1024])
def test_equals_brute_force(tmp_path, monkeypatch, tile, parts):
    monkeypatch.setattr(pairs, "TILE", tile)
    rows, labels = faces()
    assert_is_brute_force(result_of(*files(tmp_path, rows, labels), parts), rows, labels)


@st.composite
def small_sets(draw):
    """Few directions and copies of them: ties, pairs closer than float32 can tell, and zero rows are common."""
    number = draw(st.integers(4, 40))
    size = draw(st.integers(2, 5))
    coordinate = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 1.0 + 2.0**-20, 3.0])
    points = draw(st.lists(st.lists(coordinate, min_size=size, max_size=size), min_size=number, max_size=number))
    labels = draw(st.lists(st.integers(-1, 4), min_size=number, max_size=number))
    return (
        normalised(np.array(points, np.float32)),
        labels,
        draw(st.sampled_from([3, 16, 1024])),
        draw(st.integers(1, 3)),
    )


@settings(max_examples=120, deadline=None)
@given(small_sets())
def test_equals_brute_force_on_ties(tmp_path_factory, small):
    rows, labels, tile, parts = small
    same, different = all_scores(rows, labels)
    if not len(same) or len(different) < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "TILE", tile)
        patch.setattr(pairs, "SPARE", 0)  # let go of the lowest as soon as there are twice as many as wanted
        names = files(tmp_path_factory.mktemp("small"), rows, labels)
        score = result_of(*names, parts, headline="0.5")
        assert_is_brute_force(score, rows, labels)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kept", [1, 300, 3000])
def test_bounds_hold_the_exact_result_where_more_are_admitted_than_kept(tmp_path, monkeypatch, kept, seed):
    monkeypatch.setattr(pairs, "TILE", 128)
    rows, labels = faces(seed=seed, noise=2.0)
    score = result_of(*files(tmp_path, rows, labels), 2, kept=kept)
    assert [point.exact for point in score.curve] == [point.admitted < kept for point in score.curve]
    assert_is_brute_force(score, rows, labels, exact=False)
    for point in score.curve:
        assert point.tpr_high - point.tpr < 0.01
        assert point.threshold_high - point.threshold < 3e-5
        assert point.accepted >= 0.9 * point.admitted - 10


def test_close_scores_are_ordered_in_float64(tmp_path):
    """Negatives nearer to each other than float32 can tell: rounded scores alone would give another threshold."""
    rng = np.random.default_rng(5)
    base = normalised(rng.normal(size=(1, 256)).astype(np.float32))
    rows = normalised((base + 1e-5 * rng.normal(size=(120, 256))).astype(np.float32))
    labels = np.where(np.arange(120) < 10, 0, -1)
    score = result_of(*files(tmp_path, rows, labels))
    assert_is_brute_force(score, rows, labels)
    _, different = all_scores(rows, labels)
    assert len(np.unique(different.astype(np.float32))) < len(np.unique(different)) / 10


def test_a_float32_score_is_within_the_bound(tmp_path):
    rng = np.random.default_rng(0)
    for dimensions in (3, 128, 512):
        rows = normalised(np.abs(rng.normal(size=(300, dimensions))).astype(np.float32))
        error = np.abs(np.dot(rows, rows.T) - rows.astype(np.float64) @ rows.astype(np.float64).T).max()
        assert 0 < error < pairs.score_error(dimensions, 1.00001)
    assert pairs.score_error(512) == pytest.approx(3.05e-5, rel=1e-3)


# --- the pass in units


def test_units_and_parts_cover_every_pair_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", 16)
    rows, labels = faces(rows=333)
    plan = make_plan(*files(tmp_path, rows, labels), fprs=FPRS, headline="1e-3")
    assert sum(pairs.unit_pairs(333, *unit) for unit in plan.units) == 333 * 332 // 2
    for parts in (1, 2, 5):
        mine = [Part.empty(plan, index, parts).mine for index in range(1, parts + 1)]
        assert sorted(np.concatenate(mine)) == list(range(len(plan.units)))
        shares = [Part.empty(plan, index, parts).pairs(units) for index, units in enumerate(mine, 1)]
        assert max(shares) < 1.35 * min(shares)


def test_a_stopped_scan_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", 32)
    rows, labels = faces()
    names = files(tmp_path, rows, labels)
    plan = make_plan(*names, fprs=FPRS, headline="1e-2", kept=500)
    whole, stopped = Part.empty(plan), Part.empty(plan)
    seen = []
    run(whole, on_unit=seen.append)
    assert sum(seen) == 600 * 599 // 2

    class Stop(Exception):
        pass

    def stop(_):
        if stopped.done.sum() == 3:
            raise Stop

    with pytest.raises(Stop):
        run(stopped, on_unit=stop)
    with pytest.raises(ValueError, match="units of the scan are missing"):
        finish(stopped)
    again = Part.of(stopped.arrays())
    assert again.done.sum() == 3
    rest = []
    run(again, on_unit=rest.append)
    assert rest == seen[3:]
    assert finish(again).as_dict() == finish(whole).as_dict()


def test_a_unit_that_is_interrupted_while_it_is_added_is_not_saved(tmp_path, monkeypatch):
    """It is not done: saved with its pairs it would be counted twice."""
    from vargface.commands.lfr_state import saved

    monkeypatch.setattr(pairs, "TILE", 100)
    plan = make_plan(*files(tmp_path, *faces()), fprs=FPRS, headline="1e-2", kept=500)
    due = Part.empty(plan)
    run(due)
    part, added = Part.empty(plan), []
    whole = Part.add

    def add(self, found):
        whole(self, found)
        added.append(1)
        if len(added) == 3:
            raise KeyboardInterrupt

    path = tmp_path / "state.npz"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), saved(part, path) as save:
        patch.setattr(Part, "add", add)
        run(part, on_unit=lambda pairs: save())
    with np.load(path) as arrays:
        again = Part.of(dict(arrays))
    run(again)
    assert {**finish(again).as_dict(), "seconds": 0} == {**finish(due).as_dict(), "seconds": 0}


def test_one_other_row_is_another_scan(tmp_path):
    rows, labels = faces(rows=9000)
    first = make_plan(*files(tmp_path, rows, labels), headline="1e-4")
    rows[4321] = -rows[4321]
    assert not make_plan(*files(tmp_path, rows, labels), headline="1e-4").agrees(first)


def test_what_is_kept_stays_small(tmp_path, monkeypatch):
    """The level rises with what is found, so that nothing grows with the number of pairs."""
    monkeypatch.setattr(pairs, "TILE", 32)
    monkeypatch.setattr(pairs, "SPARE", 64)
    rows, labels = faces(rows=900)
    part = Part.empty(make_plan(*files(tmp_path, rows, labels), fprs=(), headline="1e-4"))
    sizes = []
    run(part, on_unit=lambda _: sizes.append(part.top._size))
    assert max(sizes) < 2 * (part.plan.keep + 64)
    assert part.plan.keep == part.plan.admitted("1e-4") + 1 == 41


def test_parts_that_do_not_belong_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", 32)
    rows, labels = faces()
    names = files(tmp_path, rows, labels)
    plan = make_plan(*names, fprs=FPRS, headline="1e-2")
    one, two = Part.empty(plan, 1, 2), Part.empty(plan, 2, 2)
    run(one)
    with pytest.raises(InputError, match=r"part 2/2 has \d+ of its \d+ units still to do"):
        merge([one, two])
    run(two)
    with pytest.raises(InputError, match=r"part 1/2 is there twice"):
        merge([one, one])
    with pytest.raises(InputError, match=r"parts 1/2 are not all of the pairs"):
        merge([one])
    other = Part.empty(dataclasses.replace(plan, fingerprint="other"), 2, 2)
    with pytest.raises(InputError, match=r"part 2/2 is of another scan"):
        merge([one, other])
    assert merge([two, one]).done.all()


def test_other_rows_are_another_scan(tmp_path):
    rows, labels = faces()
    plan = make_plan(*files(tmp_path, rows, labels), fprs=FPRS, headline="1e-2")
    assert plan.agrees(make_plan(*files(tmp_path, rows, labels), fprs=FPRS, headline="1e-2"))
    changed = rows.copy()
    changed[-1] = rows[0]
    assert not plan.agrees(make_plan(*files(tmp_path, changed, labels), fprs=FPRS, headline="1e-2"))
    assert not plan.agrees(make_plan(*files(tmp_path, rows, labels[::-1]), fprs=FPRS, headline="1e-2"))


# --- what is refused


def test_a_fpr_that_admits_no_pair_is_refused_and_left_out_of_the_curve(tmp_path):
    rows, labels = faces(rows=100)
    names = files(tmp_path, rows, labels)
    with pytest.raises(
        InputError, match=r"too few for a FPR of 1e-8: it admits 4\.\de-05 of them - give --fpr 1e-1 or"
    ):
        make_plan(*names)
    assert make_plan(*names, headline="1e-2").fprs == ("1e-3", "1e-2", "1e-1")


def test_the_headline_is_one_point_however_it_is_written(tmp_path):
    score = result_of(*files(tmp_path, *faces()), headline="0.001")
    assert [point.fpr for point in score.curve].count("0.001") == 1
    assert len({Fraction(point.fpr) for point in score.curve}) == len(score.curve)
    assert score.at("1e-3") is score.at("0.001")


def test_the_headlines_of_both_test_sets_are_exact():
    for rows, fpr in ((1_862_120, "1e-8"), (203_848, "1e-4")):
        assert Fraction(fpr) * rows * (rows - 1) / 2 < KEPT


@pytest.mark.parametrize(
    "fpr",
    [
        "0",
        "1",
        "1.5",
        "-1",
        "-1e-3",
        "x",
        "",
        "1/0",
        "1/100000000",
        "nan",
        "inf",
        "1e-300000000",
        "1e300000000",
        "9" * 5000,
    ],
)
def test_a_fpr_that_is_no_share_is_refused(tmp_path, fpr):
    with pytest.raises(InputError, match=r"^FPR '.{0,40}': give a decimal number above 0 and below 1"):
        make_plan(*files(tmp_path, *faces(rows=100)), headline=fpr)


def test_nobody_twice_is_refused(tmp_path):
    rows, _ = faces(rows=50)
    with pytest.raises(InputError, match=r"labels.txt: no two images of one person"):
        make_plan(*files(tmp_path, rows, np.arange(50)), headline="1e-1")


def test_admitted_is_counted_exactly():
    plan = dataclasses.replace(
        Plan("", "", "", 0, 0, 10**12 - 1, 0, "", 0, (), 0, 0.0, (), 0.0, np.empty(0)),
    )
    assert plan.admitted("1e-8") == 9_999
    assert dataclasses.replace(plan, negatives=10**12).admitted("1e-8") == 10_000
    assert dataclasses.replace(plan, negatives=3 * 10**11).admitted("0.1") == 3 * 10**10


def test_rows_that_are_all_alike_are_said_not_hoarded(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "SPARE", 100)
    monkeypatch.setattr(scoring, "TOO_MANY", 1000)
    rows = np.tile(normalised(np.ones((1, 8), np.float32)), (300, 1))
    plan = make_plan(*files(tmp_path, rows, np.where(np.arange(300) < 9, 0, -1)), fprs=(), headline="1e-3")
    with pytest.raises(InputError, match=r"more than 1,000 pairs of different people score 0\.99\d+ alike"):
        run(Part.empty(plan))


# --- where the sample misjudges


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("elsewhere", [-0.99, 0.0, 0.2, 0.999])
def test_a_second_pass_finds_what_the_sample_misjudged(tmp_path, monkeypatch, elsewhere, parts):
    monkeypatch.setattr(pairs, "TILE", 128)
    monkeypatch.setattr(plan, "_sampled", lambda *_: iter([np.full(1000, elsewhere)]))
    rows, labels = faces(noise=2.0)
    first = scanned(make_plan(*files(tmp_path, rows, labels), fprs=FPRS, headline="1e-2", kept=300), parts)
    assert misjudged(first)
    with pytest.raises(ValueError, match="a second pass is needed"):
        finish(first)
    second = scanned(corrected(first), parts)
    assert second.plan.asks_the_same(first.plan)
    assert not second.plan.agrees(first.plan)
    assert misjudged(second) == ()
    assert_is_brute_force(finish(second), rows, labels, exact=False)


@settings(max_examples=100, deadline=None)
@given(small_sets(), st.lists(st.floats(-1, 1), min_size=7, max_size=7), st.integers(1, 60))
def test_wherever_the_sample_sends_it_the_second_pass_is_right(tmp_path_factory, small, samples, kept):
    rows, labels, tile, parts = small
    same, different = all_scores(rows, labels)
    if not len(same) or len(different) < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "TILE", tile)
        patch.setattr(pairs, "SPARE", 0)
        patch.setattr(plan, "_sampled", lambda *_: iter([np.array(samples)]))
        names = files(tmp_path_factory.mktemp("small"), rows, labels)
        found = scanned(make_plan(*names, fprs=FPRS, headline="0.5", kept=kept), parts)
        if misjudged(found):
            found = scanned(corrected(found), parts)
        assert_is_brute_force(finish(found), rows, labels, exact=False)


def test_a_level_just_below_the_last_kept_is_misjudged(tmp_path):
    """Pairs below the level may belong above the threshold in float64: they were let go."""
    rng = np.random.default_rng(5)
    base = normalised(rng.normal(size=(1, 256)).astype(np.float32))
    rows = normalised((base + 1e-5 * rng.normal(size=(120, 256))).astype(np.float32))
    labels = np.where(np.arange(120) < 10, 0, -1)
    right = make_plan(*files(tmp_path, rows, labels), fprs=(), headline="1e-2")
    kept = np.sort(scanned(right).top.pairs()[0])[::-1]
    tight = dataclasses.replace(right, level=float(kept[right.keep + 5]))
    found = scanned(tight)
    assert len(found.top.pairs()[0]) > right.keep  # enough pairs, not the right ones
    assert misjudged(found) == ("1e-2",)
    assert_is_brute_force(finish(scanned(corrected(found))), rows, labels)


def test_a_row_near_everyone_that_the_sample_did_not_see(tmp_path, monkeypatch):
    """One of 1,000 rows scores high with all others: the threshold is among its pairs, and no block has seen one."""
    rows = np.random.default_rng(3).normal(size=(1000, 256)) / 16 + 1 / 16
    rows[700] = 1
    rows, labels = normalised(rows.astype(np.float32)), np.where(np.arange(1000) < 100, np.arange(1000) // 10, -1)
    monkeypatch.setattr(plan, "SAMPLE_BLOCKS", 4)
    monkeypatch.setattr(plan, "SAMPLE_ROWS", (32, 32))
    first = scanned(make_plan(*files(tmp_path, rows, labels), fprs=("1e-3", "1e-1"), headline="1e-3", kept=100))
    assert misjudged(first) == ("1e-3",)
    assert_is_brute_force(finish(scanned(corrected(first))), rows, labels, exact=False)


def test_many_pairs_alike_are_not_gone_through_at_every_tile(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", 16)
    monkeypatch.setattr(pairs, "SPARE", 16)
    rows = np.tile(normalised(np.ones((1, 8), np.float32)), (300, 1))
    names = files(tmp_path, rows, np.where(np.arange(300) < 9, 0, -1))
    calls, whole = [], pairs.Top.pairs
    monkeypatch.setattr(pairs.Top, "pairs", lambda top: calls.append(top) or whole(top))
    top = pairs.Top(10, -1, 1e-6, 10**9)
    for _, _, scores in pairs._tiles(open_test_set(*names), 0, 300):
        values = scores[scores > -1]
        top.add(values, *np.zeros((2, len(values)), np.uint32))
    assert len(calls) < 25  # of 190 tiles


# --- what is shown


def test_the_most_wrong_pairs_are_rows_of_the_file(tmp_path):
    rows, labels = faces()
    score = result_of(*files(tmp_path, rows, labels))
    same, different = all_scores(rows, labels)
    i, j, cosines = score.false_accepts
    assert len(i) == scoring.SHOWN
    np.testing.assert_allclose(cosines, np.sort(different)[::-1][: len(i)], atol=1e-6)
    np.testing.assert_allclose(np.sum(rows[i] * rows[j], axis=1), cosines, atol=1e-6)
    assert not ((labels[i] == labels[j]) & (labels[i] >= 0)).any()
    i, j, cosines = score.false_rejects
    np.testing.assert_allclose(cosines, np.sort(same)[: len(i)], atol=1e-6)
    assert ((labels[i] == labels[j]) & (labels[i] >= 0)).all()


def test_histograms_hold_all_positives_and_a_sample_of_negatives(tmp_path):
    rows, labels = faces(rows=1000)
    score = result_of(*files(tmp_path, rows, labels))
    same, different = all_scores(rows, labels)
    np.testing.assert_array_equal(score.histograms[0].sum(), len(same))
    expected = np.histogram(different, HISTOGRAM)[0] / len(different)
    np.testing.assert_allclose(score.histograms[1] / score.histograms[1].sum(), expected, atol=0.005)


def test_the_figures_go_into_json(tmp_path):
    fields = result_of(*files(tmp_path, *faces())).as_dict()
    assert {"rows", "positives", "negatives", "distractors", "curve", "float32_error"} <= set(fields)
    assert fields["rows"] == 600
    assert [point["fpr"] for point in fields["curve"]] == ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "0.5"]


def test_a_person_of_many_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", 16)
    monkeypatch.setattr(pairs, "CHUNK_SCORES", 100)
    rows, _ = faces(rows=120)
    labels = np.where(np.arange(120) < 90, 3, -1)
    test_set = TestSet.of(rows, labels)
    found = sorted(
        (int(i), int(j)) for _, some, others in pairs.positive_scores(test_set) for i, j in zip(some, others)
    )
    assert found == [(i, j) for i in range(90) for j in range(i + 1, 90)]
    assert_is_brute_force(result_of(*files(tmp_path, rows, labels)), rows, labels)
