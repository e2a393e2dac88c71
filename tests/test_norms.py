"""Norms out of the ordinary, and what is said of them."""

import numpy as np
import pytest

from vargface.eval.norms import Norms, explain_norms


def norms_of(plain, mirrored=None, energy=(1, 1, 1, 1, 1)):
    plain = np.array(plain, dtype=np.float64)
    return Norms.of(plain, plain if mirrored is None else np.array(mirrored, dtype=np.float64), np.array(energy))


def ordinary(median=11.0):
    return norms_of(np.linspace(0.8, 1.2, 101) * median)


def test_ordinary_norms_are_not_remarked_on():
    assert explain_norms({"lfw": ordinary(), "cfp_fp": ordinary(12)}) == []
    assert explain_norms({}) == []


def test_spread():
    norms = norms_of([1, 2, 3, 4], [5, 6, 7, 8])
    assert (norms.smallest, norms.median, norms.largest) == (1, 4.5, 8)
    assert (norms.low, norms.high) == pytest.approx((1.35, 7.65))


def test_a_few_images_that_make_the_mean_are_named_whichever_view_it_is():
    plain, mirrored = np.full(100, 11.0), np.full(100, 11.0)
    plain[17], mirrored[40], plain[60] = 9000, 50, 0
    norms = norms_of(plain, mirrored)
    assert norms.outliers == 3
    assert norms.farthest == ((60, 0.0), (17, 9000.0), (40, 50.0))
    assert norms.mean_without == 11
    (line,) = explain_norms({"cfp_fp": norms, "lfw": ordinary()})
    assert line.startswith(
        "cfp_fp: 3 images have norms 3 times off the median 11: image 60 (pair 30) 0, image 17 (pair 8)"
    )
    assert line.endswith("without them xnorm is 11")


def test_a_dimension_that_holds_most_of_the_norm_is_named():
    (line,) = explain_norms({"lfw": norms_of(np.full(9, 11.0), energy=[1, 1, 97, 1])})
    assert line.startswith("lfw: dimension 2 of the embedding holds 97% of the squared norms")


def test_a_pack_of_larger_norms_throughout_is_compared_with_the_others():
    (line,) = explain_norms({"lfw": ordinary(11), "cfp_fp": ordinary(270), "agedb_30": ordinary(12)})
    assert line.startswith("cfp_fp: the median norm 270 is 24.5 times that of lfw: all its images, not a few")


def test_embeddings_of_zeros():
    norms = norms_of(np.zeros(4), energy=[0, 0])
    assert (norms.outliers, norms.mean_without, norms.dimension_share) == (0, 0, 0)
