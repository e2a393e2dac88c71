"""Training curves: what is read of a run's logs, and what the picture shows of it."""

import cv2
import numpy as np
import pytest

from vargface.cli import main
from vargface.errors import InputError
from vargface.eval.curves import History, draw_curves
from vargface.training.report import history_of

LOG = "step,lr,margin_loss,teacher_cosine\n25,0.1,18.5,0.01\n50,0.2,17,0.1\n"
VERIFICATION = "step,number,pack,accuracy\n25,1,lfw,0.5\n25,1,cfp_fp,0.4\n50,2,lfw,0.75\n50,2,cfp_fp,0.625\n"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "log.csv").write_text(LOG)
    (folder / "verification.csv").write_text(VERIFICATION)
    return folder


def decoded(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def test_a_history_is_what_the_run_logged(run):
    history = history_of(run)
    assert history.name == "student"
    assert {name: list(values) for name, values in history.log.items()} == {
        "step": [25, 50],
        "lr": [0.1, 0.2],
        "margin_loss": [18.5, 17],
        "teacher_cosine": [0.01, 0.1],
    }
    assert {pack: [list(part) for part in parts] for pack, parts in history.packs.items()} == {
        "lfw": [[25, 50], [0.5, 0.75]],
        "cfp_fp": [[25, 50], [0.4, 0.625]],
    }


def test_a_run_that_was_killed_while_it_wrote_a_line_can_be_read(run):
    (run / "log.csv").write_text(LOG + "75,0.")
    assert np.isnan(history_of(run).log["margin_loss"][2])


@pytest.mark.parametrize(
    ("name", "text"), [("log.csv", LOG + "75,x,1,1\n"), ("verification.csv", "step,pack\n5,lfw\n")]
)
def test_a_log_that_training_did_not_write_is_said(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(InputError, match="its log is not what training wrote"):
        history_of(run)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no run that has logged a step"):
        history_of(tmp_path)


def test_a_run_without_a_teacher_has_fewer_panels_and_every_curve_is_drawn():
    steps = np.array([1.0, 2.0])
    plain = History("plain", {"step": steps, "margin_loss": steps})
    taught = History("taught", {**plain.log, "teacher_cosine": steps, "distillation_loss": steps})
    alone, both = decoded(draw_curves([plain])), decoded(draw_curves([plain, taught]))
    assert both.shape[0] == 2 * alone.shape[0]
    orange = (np.abs(both.astype(int) - [14, 127, 255]) < 8).all(axis=2)  # matplotlib's second colour, BGR
    assert orange.sum() > 100 and not (np.abs(alone.astype(int) - [14, 127, 255]) < 8).all(axis=2).any()


def coloured(picture: np.ndarray) -> int:
    """Pixels in matplotlib's first colour, full or thinned."""
    blue, _, red = (picture[:, :, channel].astype(int) for channel in range(3))
    return int((blue > red + 20).sum())


def test_percentiles_gradients_and_norms_of_packs_are_drawn():
    steps = np.array([1.0, 2.0, 3.0])
    log = {"step": steps, "teacher_cosine": steps}
    plain = decoded(draw_curves([History("run", log)]))
    band = {**log, "teacher_cosine_p5": steps - 1, "teacher_cosine_p95": steps + 1}
    assert coloured(decoded(draw_curves([History("run", band)]))) > 5 * coloured(plain)
    gradients = {"step": steps, "margin_gradient": steps, "distillation_gradient": 100 * steps}
    one = decoded(draw_curves([History("run", {**gradients, "distillation_gradient": np.full(3, np.nan)})]))
    assert coloured(decoded(draw_curves([History("run", gradients)]))) > 1.2 * coloured(one)
    norms = History("run", {"step": steps, "margin_loss": steps}, xnorms={"lfw": (steps, 10 * steps)})
    assert decoded(draw_curves([norms])).shape[0] == plain.shape[0]  # a panel more, in the same row
    assert coloured(decoded(draw_curves([norms]))) > 1.5 * coloured(plain)


def test_norms_are_read_by_pack(run):
    (run / "verification.csv").write_text("step,number,pack,accuracy,xnorm\n25,1,lfw,0.5,7.5\n50,2,lfw,0.5,8\n")
    assert [list(part) for part in history_of(run).xnorms["lfw"]] == [[25, 50], [7.5, 8]]


def test_the_command_writes_the_picture_or_one_line(run, tmp_path, capsys):
    assert main(["curves", str(run), "--out", str(tmp_path / "curves.png")]) == 0
    assert decoded((tmp_path / "curves.png").read_bytes()).shape[1] > 800
    assert main(["curves", str(tmp_path), "--out", str(tmp_path / "none.png")]) == 2
    assert not (tmp_path / "none.png").exists()
    assert capsys.readouterr().err.count("\n") == 1
