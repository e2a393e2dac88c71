"""What benchmarks refuse, and a threshold of cross_pairs.py against a loop over the pairs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from vargface.checkpoint import save_checkpoint
from vargface.data.decoding import decode
from vargface.data.records import FaceRecords
from vargface.deploy.embedder import Embedder
from vargface.errors import InputError
from vargface.runtime import mx

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_pytorchs_worker_takes_from_inference_needs_no_package():
    """Its environment has torch and numpy, and none of ours."""
    code = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from inference import answer"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_plan_is_of_the_parts_that_lie_beside_it(monkeypatch, capsys):
    """The processor's time a step, by hand, of a tenth of WebFace42M's classes on eight GPUs a machine."""
    parts = json.loads((FOLDER / "scale_parts.json").read_text())
    monkeypatch.setattr(sys, "argv", ["scale_plan.py"])
    benchmark("scale_plan").main()
    line = next(line for line in capsys.readouterr().out.splitlines() if "share 0.1" in line)
    classes, taken, params = 2_059_906, 205_991, 65.2e6
    due = taken * 4 * (parts["row"] + parts["row updated"] / 8)
    due += 7 * taken * 512 * parts["number of another context"]
    due += classes / taken * np.log(taken) * parts["update missed"]
    due += 4 * (params + taken * 512) * parts["byte"] + 463 * parts["array beside sampled centres"]
    named = {name: float(seconds) for name, seconds in re.findall(r"(\w+) (\d+\.\d{4})", line)}
    assert named["processor"] == pytest.approx(due, abs=1e-4)
    step = sum(seconds for name, seconds in named.items() if name != "decoding")
    hours, steps, looks = re.search(r": ([\d.]+) h, ([\d,]+) steps .* ([\d.]+) h of it", line).groups()
    assert float(hours) == pytest.approx(step * int(steps.replace(",", "")) / 3600 + float(looks), abs=0.2)


def test_scale_model_says_what_check_is_held_against():
    command = [sys.executable, str(FOLDER / "scale_model.py"), "check", "parts.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "check takes parts.json and DATA" in done.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Of 16 numbers, and of 8."""
    folder = tmp_path_factory.mktemp("models")
    symbol = mx.sym.FullyConnected(tiny.network().get_internals()["relu1_output"], num_hidden=8, name="fc1")
    return [tiny.make_teacher(folder), save_checkpoint(folder / "small", 0, symbol, *tiny.weights(symbol))]


@pytest.fixture
def cross_pairs(monkeypatch):
    """Runs the benchmark on arguments, with data sets of 100 pairs allowed, and returns its exit code."""
    module = benchmark("cross_pairs")
    monkeypatch.setattr(module, "FARS", (1e-1, 1e-2))

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["cross_pairs.py", *map(str, arguments)])
        return module.main()

    return run


def test_cross_pairs_against_a_loop(cross_pairs, models, data, capsys):
    assert cross_pairs("--model", models[0], "--no-flip", "--each", tiny.EACH, data) == 0
    lines = capsys.readouterr().out.splitlines()
    records = FaceRecords(data)
    who, encoded = zip(*(records.read(place) for place in range(len(records))))
    faces = np.stack([decode(image)[:, :, ::-1] for image in encoded])
    embeddings = Embedder(models[0]).embed(faces, flip=False)
    cosines = {True: [], False: []}
    for one, other in itertools.combinations(range(len(who)), 2):
        cosines[who[one] == who[other]].append(embeddings[one] @ embeddings[other])
    assert lines[0] == "4 people, 24 faces, 60 pairs the same, 216 different"
    threshold = sorted(cosines[False])[-22]  # 21 are let in
    passing = 100 * np.mean(np.array(cosines[True]) > threshold)
    assert lines[-1].split() == ["1e-01", f"{threshold:.3f}", f"{passing:.1f}", "21"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--each", 1], "--each 1: must be 2 or more"),
        (["--each", 500], "0 pairs of different people, 500 faces each of 0, tell no threshold - 100 do"),
        (["--people", 3], "12 pairs of different people, 2 faces each of 3, tell no threshold"),
        (["--each", 6, "--gallery", "small"], "embeddings of 16 and 8 numbers cannot be compared"),
        (["nowhere"], "nowhere"),
    ],
)
def test_cross_pairs_refuses_what_tells_no_threshold(cross_pairs, models, data, capsys, more, message):
    """They were a traceback, or warnings of numpy's and an empty table."""
    arguments = [models[1] if word == "small" else word for word in more]
    assert cross_pairs("--model", models[0], *arguments, *([] if "nowhere" in more else [data])) == 2
    error = capsys.readouterr().err
    assert error.startswith("cross_pairs.py: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_files_of_another_model_are_not_measured(models, tmp_path):
    """They were, under this one's name."""
    inference = benchmark("inference")
    for _ in range(2):
        inference.check_whose(tmp_path, models[0])
    with pytest.raises(InputError, match="holds files exported from another model"):
        inference.check_whose(tmp_path, models[1])
