"""Tables of results, by their text."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from vargface.eval.flops import LayerCost, NetworkCost
from vargface.eval.table import Result, format_table, layer_table, results_table
from vargface.eval.verification import verify

LFW = replace(
    verify(np.ones((20, 2)), [True] * 10),
    accuracy=0.98765,
    accuracy_std=0.004,
    tar=0.5,
    far_target=1e-3,
    name="lfw",
    tars={"1e-3": 0.5},
)
CFP = replace(LFW, accuracy=1.0, accuracy_std=0.0, tar=math.nan, name="cfp_fp")


def test_results_in_columns_as_wide_as_their_content():
    student = Result(
        "generation 1",
        {"lfw": LFW, "cfp_fp": CFP},
        5_198_292,
        1_022_864_152,
        "runs/a,20",
    )
    text = results_table([Result("teacher", {"cfp_fp": CFP}), student])
    assert text.splitlines() == [
        "model              cfp_fp %  cfp_fp TAR@1e-3 %         lfw %  lfw TAR@1e-3 %     params   MFLOPs  checkpoint",
        "------------  -------------  -----------------  ------------  --------------  ---------  -------  ----------",
        "teacher       100.00 ± 0.00                  -             -               -          -        -  -",
        "generation 1  100.00 ± 0.00                  -  98.77 ± 0.40           50.00  5,198,292  1,022.9  runs/a,20",
    ]


def test_markdown():
    text = results_table([Result("a|b", {"lfw": LFW})], markdown=True)
    header, rule, row = text.splitlines()
    assert re.fullmatch(r":-+", rule.strip("| ").split(" | ")[0])
    assert row.startswith("| a\\|b  | 98.77 ± 0.40 |")
    assert len(header) == len(rule) == len(row)


def test_a_tar_that_the_pack_cannot_tell_is_marked():
    few = replace(LFW, tars={"1e-1": 0.9, "1e-2": 0.7})
    for markdown, mark in ((False, "*"), (True, r"\*")):
        text = results_table([Result("a", {"lfw": LFW, "few": few, "cfp_fp": CFP})], markdown=markdown)
        *_, row, empty, note = text.splitlines()
        assert [word for word in row.split() if word.startswith("50.00")] == ["50.00", f"50.00{mark}"]
        assert (empty, note[: len(mark) + 23]) == ("", f"{mark} fewer than 1 / FAR pairs"[: len(mark) + 23])
    assert "fewer" not in results_table([Result("a", {"lfw": LFW, "cfp_fp": replace(CFP, tars={})})])


@pytest.mark.parametrize("different, told", [(1000, False), (1112, True)])
def test_a_pack_tells_a_tar_by_the_pairs_that_choose_its_threshold(different, told):
    """Nine of ten folds choose: 1,000 pairs are 900 there."""
    embeddings = np.random.default_rng(0).normal(size=(4 * different, 8))
    found = verify(embeddings, np.arange(2 * different) % 2 == 0)
    assert found.tells_tar is told
    assert not math.isnan(found.tar)


def test_columns_of_packs_at_another_far_are_apart():
    loose = replace(LFW, far_target=0.01, tar=0.75)
    header, _, first, second = results_table([Result("a", {"lfw": LFW}), Result("b", {"lfw": loose})]).splitlines()
    assert "lfw TAR@1e-3 %" in header
    assert "lfw TAR@1e-2 %" in header
    assert first.split()[-6:] == ["50.00", "-", "-", "-", "-", "-"]
    assert second.split()[1:3] == ["-", "-"]


def test_no_rows_and_no_packs():
    assert results_table([]).splitlines()[0].split() == [
        "model",
        "params",
        "MFLOPs",
        "checkpoint",
    ]


def test_left_and_right():
    assert format_table(["name", "n"], [["a", "1"], ["long name", "1000"]]).splitlines() == [
        "name          n",
        "---------  ----",
        "a             1",
        "long name  1000",
    ]


def test_layers_end_in_totals():
    layers = (
        LayerCost("conv", "Convolution", (4, 3, 2), 840, 432, 72, 0),
        LayerCost("norm", "BatchNorm", (4, 3, 2), 0, 0, 8, 1008),
    )
    lines = layer_table(NetworkCost(layers, fixed_gammas=0, file_bytes=0, uncounted=())).splitlines()
    assert lines[2].split() == ["conv", "Convolution", "4x3x2", "840", "432", "72", "0"]
    assert lines[-1].split() == ["total", "-", "-", "840", "432", "80", "1,008"]
