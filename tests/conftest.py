"""What every test may use: the files of ../shared, or a skip that says they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# before anything loads MXNet: the tests share their cores with each other and must not wait for each other's threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the photos, so that `-m 'not real'` leaves them out."""
    for item in items:
        if "real_faces" in getattr(item, "fixturenames", ()):
            item.add_marker("real")


def _shared(variable: str, default: Path) -> Path:
    """Return the folder that the environment variable names, else `default`; skip the test where there is none."""
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder (set {variable} to name another)")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_faces() -> Path:
    """The folder of real photos and the public teacher: real-mini/, insightface-y1/."""
    return _shared("VARGFACE_FACES", ROOT.parent / "shared" / "faces")


@pytest.fixture(scope="session")
def spec() -> Path:
    """The folder of facts about the originals: parameter tables and golden vectors."""
    return _shared("VARGFACE_SPEC", ROOT.parent / "shared" / "spec")


# the fixtures below load MXNet, so their imports wait until a test asks for one


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder of two dozen images, not to be written to."""
    import tiny

    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """PREFIX,EPOCH of a teacher for it."""
    import tiny

    return tiny.make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def make(data, tmp_path, monkeypatch):
    """Makes recipes of a tiny network on the tiny data set, into tmp_path/run."""
    import tiny

    from vargface.training import plan

    monkeypatch.setattr(plan, "network_symbol", lambda recipe: tiny.network())

    def recipe(**keys):
        return tiny.make_recipe(**{"data": data, "out": tmp_path / "run", "steps": 4, **keys})

    return recipe


@pytest.fixture
def with_dropout(make, monkeypatch):
    """Like `make`, with dropout before the network's last layer."""
    import tiny

    from vargface.runtime import mx
    from vargface.training import plan

    def network(recipe):
        hidden = tiny.network().get_internals()["relu1_output"]
        hidden = mx.sym.Dropout(mx.sym.Flatten(hidden), p=0.4, name="dropout0")
        return mx.sym.FullyConnected(hidden, num_hidden=tiny.DIMENSIONS, name="fc1")

    monkeypatch.setattr(plan, "network_symbol", network)
    return make
