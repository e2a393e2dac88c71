"""The page of a run: all that is asked of it, true, and in one file."""

from __future__ import annotations

import html.parser
import re

import pytest
import tiny

from vargface import runtime
from vargface.errors import InputError
from vargface.training.fit import train
from vargface.training.report import page_of


class Reader(html.parser.HTMLParser):
    """Tables as rows of cells, pictures by their text, everything else as text; every tag must be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "img":
            self.pictures[found["alt"]] = found["src"]
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        assert not {"href", "onclick"} & set(found) and tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        self.text += data


def row(reader: Reader, first: str) -> list[str]:
    (found,) = [cells for cells in reader.rows if cells and cells[0] == first]
    return found


def test_training_leaves_a_page_of_itself(make, teacher, tmp_path):
    (folder,) = train(make(teacher=teacher, steps=4, verify_every=2, log_every=1, report=True))
    reader = Reader((folder.path / "report.html").read_text())
    assert "step 4 of 4, finished" in reader.text and f"distilled from {teacher}" in reader.text
    figures = folder.result["packs"]["pairs"]
    found = row(reader, "pairs")
    assert found[1].startswith(f"{100 * figures['accuracy']:.2f} ±")
    assert found[-2:] == [f"{figures['xnorm']:.2f}", "10"]
    # five different pairs do not tell a TAR at FAR 1e-3
    assert re.fullmatch(r"[0-9.]+\* at FAR 0\.001", found[2])
    assert "* fewer than 1 / FAR pairs" in reader.text
    assert set(reader.pictures) == {"curves by step", "ROC on pairs", "cosines on pairs, run"}
    assert all(re.match(r"data:image/png;base64,iVBOR", source) for source in reader.pictures.values())
    assert row(reader, "lr")[1:] == ["0.02", "0.1"] and row(reader, "batch_size")[1:] == ["4", "512"]
    assert "momentum = 0.9" in reader.text
    assert row(reader, "cores")[1] == str(runtime.cores()) and "1.9.1" in row(reader, "MXNet")[1]


def test_a_run_that_is_not_finished_has_one_too(make):
    (folder,) = train(make(steps=4, verify_every=2, log_every=1))
    assert not (folder.path / "report.html").exists()
    (folder.path / "result.json").unlink()
    reader = Reader(page_of([folder.path]))
    assert row(reader, "pairs")[-1] == "10" and "without a teacher" in reader.text


def test_several_runs_side_by_side(make, teacher, tmp_path):
    one = train(make(steps=3, log_every=1, out=tmp_path / "plain"))[0]
    other = train(make(steps=3, log_every=1, out=tmp_path / "<taught>", teacher=teacher, lr=0.01))[0]
    reader = Reader(page_of([one.path, other.path]))
    packs = [cells[:2] for cells in reader.rows if len(cells) == 9 and cells[0] != "run"]
    assert packs == [["plain", "pairs"], ["<taught>", "pairs"]]
    assert row(reader, "lr")[1:] == ["0.02", "0.01", "0.1"]
    assert "ROC on pairs" in reader.pictures and "cosines on pairs, <taught>" in reader.pictures


def test_what_the_log_says_in_words_is_on_the_page(make, teacher):
    (folder,) = train(make(teacher=teacher, alpha=1e-4, steps=4, log_every=1, report=True))
    reader = Reader((folder.path / "report.html").read_text())
    assert "Warnings" in reader.text
    assert "run, step 3: distillation teaches next to nothing" in reader.text
    (quiet,) = train(make(teacher=teacher, steps=4, log_every=1, report=True, out=folder.path.parent / "quiet"))
    assert "Warnings" not in (quiet.path / "report.html").read_text()


def test_no_run_is_no_page(tmp_path):
    with pytest.raises(InputError, match="no run that has logged a step"):
        page_of([tmp_path])


def test_the_distances_kept_are_the_best_checkpoints(make, monkeypatch):
    from vargface.training.run_folder import distances_of

    scores, kept = iter([0.75, 0.5]), []
    monkeypatch.setattr(
        "vargface.training.generation.mean_accuracy",
        lambda results: kept.append(results["pairs"].distances) or next(scores),
    )
    (folder,) = train(make(steps=4, verify_every=2))
    found, same = distances_of(folder.path)["pairs"]
    assert found.tolist() == kept[0].tolist() != kept[1].tolist()
    assert same.tolist() == [True, False] * 5
    assert tiny.rows(folder.path / "verification.csv")[0]["number"] == str(folder.result["best"]) == "1"
