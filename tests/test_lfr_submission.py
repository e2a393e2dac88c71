"""The submission file: order, rows, resuming to the last bit, images that cannot be read, videos."""

from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import pytest
import tiny

from vargface.errors import InputError
from vargface.eval.lfr import submission
from vargface.eval.lfr.features import header, open_features
from vargface.eval.lfr.submission import Submission, read_filelist, submit

DIMENSIONS = 12


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (3, 6, 4), dtype=np.uint8)


def read_image(path) -> np.ndarray:
    if not path.exists():
        raise InputError(f"{path}: cannot read - get it anew")
    return picture(int(path.read_text()))


class Embed:
    """Depends on the place in the batch in the last bits, as networks do."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, images):
        assert images.dtype == np.uint8
        assert len(images) <= 4
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        rows = images.reshape(len(images), -1)[:, :DIMENSIONS].astype(np.float32) - 100
        return rows * (1 + 1e-6 * np.arange(len(images), dtype=np.float32))[:, None]


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = []
    for number in [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97]:
        (folder / f"{number}.jpg").write_text(str(number))
        names.append(f"{number}.jpg")
    (folder / "filelist.txt").write_text("\n".join(names) + "\n")
    return Submission(folder, tmp_path / "feat.bin", "model", DIMENSIONS, batch_size=4)


def expected_row(number: int) -> np.ndarray:
    both = [
        view.reshape(-1)[:DIMENSIONS].astype(np.float64) - 100 for view in (picture(number), picture(number)[..., ::-1])
    ]
    return (both[0] + both[1]) / np.linalg.norm(both[0] + both[1])


def test_rows_are_the_normalised_sums_of_both_views_in_the_filelists_order(job):
    done = []
    assert submit(job, Embed(), read_image, on_rows=done.append) == (0, 0, "")
    assert done == [0, 4, 4, 3]
    assert job.out.read_bytes()[:16] == header(11, DIMENSIONS)
    rows = open_features(job.out)
    for row, name in zip(rows, read_filelist(job.folder)):
        np.testing.assert_allclose(row, expected_row(int(name[:-4])), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert sorted(path.name for path in job.out.parent.iterdir()) == ["feat.bin", "images"]


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 6])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(job, tmp_path, stop_at):
    submit(dataclasses.replace(job, out=tmp_path / "whole.bin"), Embed(), read_image)
    with pytest.raises(KeyboardInterrupt):
        submit(job, Embed(stop_at), read_image)
    assert not job.out.exists()
    done, embed = [], Embed()
    submit(job, embed, read_image, on_rows=done.append)
    assert done[0] == (stop_at - 1) // 2 * 4
    assert embed.calls == 6 - (stop_at - 1) // 2 * 2
    assert job.out.read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_a_run_that_was_killed_goes_on_from_what_was_saved(job, tmp_path, monkeypatch):
    """A kill leaves rows that progress.json does not know of; they are made again."""
    submit(dataclasses.replace(job, out=tmp_path / "whole.bin"), Embed(), read_image)
    with pytest.raises(KeyboardInterrupt):
        submit(job, Embed(5), read_image)
    partial = tmp_path / "feat.bin.partial"
    progress = json.loads((partial / "progress.json").read_text())
    assert progress["done"] == 8
    (partial / "progress.json").write_text(json.dumps({**progress, "done": 4}))
    with open(partial / "features", "r+b") as file:
        file.seek(16 + 4 * 4 * DIMENSIONS)
        file.write(b"\x7f" * 100)
    submit(job, Embed(), read_image)
    assert job.out.read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_another_model_or_filelist_is_not_gone_on_with(job):
    with pytest.raises(KeyboardInterrupt):
        submit(job, Embed(4), read_image)
    with pytest.raises(InputError, match=r"feat.bin.partial: was begun with another model, filelist or option"):
        submit(dataclasses.replace(job, model="another"), Embed(), read_image)
    with open(job.folder / "filelist.txt", "a") as file:
        file.write("3.jpg\n")
    with pytest.raises(InputError, match=r"was begun with another"):
        submit(job, Embed(), read_image)


def test_a_folder_where_the_file_should_be_is_told_at_once(job):
    job.out.mkdir()
    embed = Embed()
    with pytest.raises(InputError, match=r"feat.bin: is a folder - give the file to write"):
        submit(job, embed, read_image)


def test_who_stopped_at_a_bad_image_can_go_on_with_zeros(job):
    (job.folder / "6.jpg").unlink()
    with pytest.raises(InputError, match=r"6.jpg"):
        submit(job, Embed(), read_image)
    submit(dataclasses.replace(job, on_error="zero"), Embed(), read_image)
    assert job.out.exists()


def test_an_image_that_cannot_be_read_stops_with_its_name(job):
    (job.folder / "6.jpg").unlink()
    with pytest.raises(InputError, match=r"images/6.jpg: cannot read"):
        submit(job, Embed(), read_image)
    assert not job.out.exists()
    (job.folder / "6.jpg").write_text("6")  # mended: it goes on
    done = []
    submit(job, Embed(), read_image, on_rows=done.append)
    assert done == [4, 4, 3]


def test_on_error_zero_counts_and_goes_on(job):
    job = dataclasses.replace(job, on_error="zero")
    for name in ("6.jpg", "97.jpg"):
        (job.folder / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        submit(job, Embed(6), read_image)
    zeros, unreadable, first = submit(job, Embed(), read_image)
    assert (zeros, unreadable) == (2, 2)
    assert first.endswith("6.jpg: cannot read - get it anew")
    rows = open_features(job.out)
    assert [row for row in range(11) if not rows[row].any()] == [6, 10]
    np.testing.assert_allclose(rows[7], expected_row(5), atol=1e-5)


def test_an_embedding_that_is_not_finite_is_named(job):
    def embed(images):
        rows = np.ones((len(images), DIMENSIONS), np.float32)
        rows[1, 2] = np.nan
        return rows

    with pytest.raises(InputError, match=r"^1.jpg: its embedding is not finite"):
        submit(job, embed, read_image)


def test_two_processes_do_not_write_the_same(job):
    started, go = threading.Event(), threading.Event()

    def embed(images):
        started.set()
        assert go.wait(20)
        return Embed()(images)

    first = threading.Thread(target=submit, args=(job, embed, read_image))
    first.start()
    assert started.wait(20)
    with pytest.raises(InputError, match="another process is at work in it"):
        submit(job, Embed(), read_image)
    go.set()
    first.join()
    assert open_features(job.out).shape == (11, DIMENSIONS)


def test_a_full_disk_is_said_before_any_work(job):
    big = dataclasses.replace(job, dimensions=10**6)
    with tiny.largest_file(10**6), pytest.raises(InputError, match=r"features: cannot write 44,000,016 bytes"):
        submit(big, Embed(), read_image)


# --- videos


@pytest.fixture
def videos(job):
    """Three videos of 5, 1 and 2 frames; filelist.txt has more words a line, as the challenge's."""
    lines = []
    for number, frames in enumerate([5, 1, 2]):
        folder = job.folder / f"v{number}"
        folder.mkdir()
        for frame in range(frames):
            (folder / f"{frame}.jpg").write_text(str(10 * number + frame))
        (folder / "notes.txt").write_text("")
        lines.append(f"v{number} {frames}")
    (job.folder / "filelist.txt").write_text("\n".join(lines))
    return dataclasses.replace(job, video=True, batch_size=2)


def frame_row(number: int) -> np.ndarray:
    row = picture(number).reshape(-1)[:DIMENSIONS].astype(np.float64) - 100
    return row / np.linalg.norm(row)


def test_a_videos_row_is_the_normalised_sum_of_its_frames_normalised_embeddings(videos):
    submit(videos, Embed(), read_image)
    rows = open_features(videos.out)
    assert rows.shape == (3, DIMENSIONS)
    for number, frames in enumerate([5, 1, 2]):
        mean = sum(frame_row(10 * number + frame) for frame in range(frames))
        np.testing.assert_allclose(rows[number], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_stopped_run_over_videos_goes_on_to_the_same_bytes(videos, tmp_path):
    submit(dataclasses.replace(videos, out=tmp_path / "whole.bin"), Embed(), read_image)
    with pytest.raises(KeyboardInterrupt):
        submit(videos, Embed(4), read_image)
    submit(videos, Embed(), read_image)
    assert videos.out.read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_frames_that_cannot_be_read_are_left_out_and_a_video_without_any_is_zero(videos):
    for name in ("v0/3.jpg", "v1/0.jpg"):
        (videos.folder / name).unlink()
        (videos.folder / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=r"v0/3.jpg: cannot read"):
        submit(videos, Embed(), read_image)
    lenient = dataclasses.replace(videos, on_error="zero", out=videos.out.with_name("lenient.bin"))
    assert submit(lenient, Embed(), read_image)[:2] == (1, 2)
    rows = open_features(lenient.out)
    mean = sum(frame_row(frame) for frame in (0, 1, 2, 4))
    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert not rows[1].any()


def test_a_video_without_frames_is_named(videos):
    (videos.folder / "v1" / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"images/v1: no frames \(\*.jpg\)"):
        submit(videos, Embed(), read_image)


# --- filelist


def test_filelists_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match=r"filelist.txt: cannot read \(No such file"):
        read_filelist(tmp_path)
    for text, line in (("", 1), ("\n\n", 1), ("a.jpg\n\nb.jpg\n", 2)):
        (tmp_path / "filelist.txt").write_text(text)
        with pytest.raises(InputError, match=f"filelist.txt: line {line} is empty"):
            read_filelist(tmp_path)


def test_rows_of_the_challenge():
    assert submission.ROWS == {False: 1_862_120, True: 203_848}
