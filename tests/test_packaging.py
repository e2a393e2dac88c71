"""What is installed: the wheel holds the whole package, the lock pins it all, the Makefile's doors do as they say."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vargface

# where the package's folders lie in the tree -> where they lie in the wheel
FOLDERS = {"src/vargface": "vargface", **{name: f"vargface/{name}" for name in ("symbols", "eval", "recipes")}}


def modules(tree: Path) -> list[str]:
    """Return the name in the wheel of every Python file of the package, sorted."""
    return sorted(
        f"{inside}/{file.relative_to(tree / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for file in (tree / folder).rglob("*.py")
    )


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, without what is made in it."""
    copy = tmp_path_factory.mktemp("tree")
    for path in (root / name for name in (*FOLDERS, "tests", "docs", "benchmarks")):
        shutil.copytree(path, copy / path.relative_to(root), ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for path in root.iterdir() if path.is_file() and path.name[0] != "."):
        shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def source(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, built offline and unpacked."""
    pytest.importorskip("setuptools", minversion="70.1", reason="needs the extra 'dev': setuptools >= 70.1")
    out = tmp_path_factory.mktemp("source")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, check=True)
    (archive,) = out.glob("*.tar.gz")
    shutil.unpack_archive(archive, out)
    return out / archive.name[: -len(".tar.gz")]


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from the source archive."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    done = subprocess.run([*build, str(source)], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_source_archive_holds_the_tree(source, tree):
    files = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file() and ".egg-info" not in str(path)}
    assert {Path("LICENSE"), Path("constraints.txt"), Path("tests/tiny.py"), Path("recipes/study/_claims.py")} <= files
    assert not files - {path.relative_to(source) for path in source.rglob("*")}


@pytest.mark.slow
def test_wheel_holds_every_module_and_the_licence(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    expected = modules(tree)
    assert {"vargface/symbols/vargfacenet.py", "vargface/recipes/__init__.py", "vargface/runtime.py"} <= set(expected)
    assert sorted(name for name in names if name.startswith("vargface/")) == expected
    assert any(name.endswith("/LICENSE") for name in names)


@pytest.mark.slow
def test_installed_elsewhere_the_command_line_trains_by_the_recipes_in_the_wheel(wheel, data, tmp_path):
    """In an environment of its own, which sees the packages beside us and not our own install."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    install = ["-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], check=True)
    (site / "packages.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "from vargface import recipe; recipe.load_recipe('study/real_mini'); print(recipe.__file__)"
    assert run(python, "-c", code) == f"{site}/vargface/recipe.py\n"
    command = python.with_name("vargface")
    assert "verify" in run(command, "--help")
    keys = ("steps=2", "warmup_steps=1", "batch_size=4", "multiplier=0.25", "generations=1", "report=False")
    run(command, "train", "demo_student", f"data={data}", "out=run", "context=cpu", *keys)
    assert (tmp_path / "run" / "student-symbol.json").exists()


@pytest.mark.slow
def test_wheel_offers_the_extras_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = archive.read(f"{info}/METADATA").decode()
        commands = archive.read(f"{info}/entry_points.txt").decode()
    assert f"\nVersion: {vargface.__version__}\n" in metadata
    assert "# " in metadata.partition("\n\n")[2]  # the README
    assert {"cpu", "cu112", "export", "dev"} == set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))
    assert re.search(r"^Requires-Dist: mxnet==1.9.1; extra == \"cpu\"$", metadata, re.MULTILINE)
    assert "vargface = vargface.__main__:run" in commands


def lock(root: Path) -> dict[str, str]:
    """Return the versions that constraints.txt pins for this Python, by canonical name."""
    lines = (root / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins: dict[str, str] = {}
    for requirement in requirements:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(requirement.specifier)), requirement
        assert requirement.url is None, requirement
        if requirement.marker is None or requirement.marker.evaluate():
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice"
            pins[name] = str(requirement.specifier)[2:]
    return pins


@pytest.fixture
def declared(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What setup.py tells setuptools."""
    keywords: dict = {}
    monkeypatch.setattr("setuptools.setup", keywords.update)
    runpy.run_path(str(root / "setup.py"))
    return keywords


def installed_requirements(package: str, extras: set[str]) -> list[str]:
    """Return what the installed `package` requires with these extras: nothing where it is not installed."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [line for line in lines if any(wanted_here(line, extra) for extra in {"", *extras})]


def wanted_here(line: str, extra: str = "") -> bool:
    """Whether this Python needs the requirement `line`."""
    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"extra": extra})


def test_lock_pins_whatever_an_install_brings(root, declared):
    pins = lock(root)
    extras = declared["extras_require"]
    lines = [*declared["install_requires"], *extras["cpu"], *extras["export"], *extras["dev"]]
    waiting = [line for line in lines if wanted_here(line)]
    seen = set()
    while waiting:
        line = waiting.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{line}: constraints.txt has no pin for it"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{line}: the lock has {pins[name]}"
        if (name, *requirement.extras) not in seen:
            seen.add((name, *requirement.extras))
            waiting += installed_requirements(name, requirement.extras)
    assert {("mxnet",), ("numpy",), ("scipy",), ("graphviz",), ("pluggy",)} <= seen


def test_builds_of_mxnet_and_its_cuda_libraries_are_exact(declared):
    extras = declared["extras_require"]
    assert extras["cpu"] == ["mxnet==1.9.1"]
    assert "mxnet-cu112==1.9.1" in extras["cu112"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in extras["cu112"])


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in `folder` as from a fresh shell: nothing of an outer make's variables."""
    doors = ("MAKE", "MFLAGS", "RECIPE", "DATA", "TEACHER", "OUT", "ARGS", "MODEL", "CALIBRATE", "EXTRA", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(doors)}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A tree with the Makefile and what .venv is built from, and no .venv."""
    for name in ("Makefile", "setup.py", "constraints.txt", "src/vargface/gpu.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def built(checkout: Path) -> Path:
    """The same with a `.venv` that counts as built and whose `vargface` prints its arguments, one a line."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    command = checkout / ".venv" / "bin" / "vargface"
    command.write_text('#!/bin/sh\nprintf "<%s>\\n" "$@"\n')
    command.chmod(0o755)
    (checkout / ".venv" / ".installed").touch()
    return checkout


def given(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the arguments that the fake `vargface` was given."""
    assert done.returncode == 0, done.stderr
    return re.findall(r"^<(.*)>$", done.stdout, re.MULTILINE)


@needs_make
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (["train-student"], ["demo"]),
        (["train-student", "OUT=runs/a b", "ARGS=x=1 y=2"], ["demo", "out=runs/a b", "x=1", "y=2"]),
        (["train-student", "RECIPE=r.py"], ["train", "r.py"]),
        (
            ["train-student", "RECIPE=r.py", "DATA=/d d", "TEACHER=m/t,3", "OUT=o", "ARGS=lr=.1"],
            ["train", "r.py", "data=/d d", "teacher=m/t,3", "out=o", "lr=.1"],
        ),
        (["train-teacher", "RECIPE=t.py", "DATA=d"], ["train", "t.py", "data=d"]),
        (
            ["train-teacher", "ARGS=lr=.1"],
            ["demo", "--data-only"]
            + ["train", "recipes/demo_teacher.py", "data=runs/demo/data", "out=runs/demo/teacher", "lr=.1"],
        ),
        (["train-teacher", "OUT=o", "RECIPE=t.py"], ["train", "t.py", "out=o"]),
    ],
)
def test_training_doors_pass_on_what_is_given_and_nothing_else(built, call, expected):
    assert given(make(built, *call)) == expected


@needs_make
def test_verify_takes_every_pack_of_the_folder(built):
    folder = built / "two packs"
    folder.mkdir()
    for name in ("b.bin", "a.bin", "train.rec"):
        (folder / name).touch()
    packs = ["two packs/a.bin", "two packs/b.bin"]
    assert given(make(built, "verify", "MODEL=m,0", "DATA=two packs")) == ["verify", "--model", "m,0", *packs]


@needs_make
def test_export_is_float_or_with_faces_to_calibrate_on_8_bits(built):
    call = ["export", "MODEL=m,0", "OUT=a b.onnx"]
    assert given(make(built, *call)) == ["export", "onnx", "--model", "m,0", "--out", "a b.onnx"]
    expected = ["export", "int8", "--model", "m,0", "--out", "a b.onnx", "--calibrate", "d d"]
    assert given(make(built, *call, "CALIBRATE=d d")) == expected


@needs_make
@pytest.mark.parametrize(
    ("call", "missing"),
    [
        (["export", "OUT=o.onnx"], "MODEL"),
        (["export", "MODEL=m,0"], "OUT"),
        (["train-student", "DATA=d"], "RECIPE"),
        (["train-teacher", "DATA=d"], "RECIPE"),
        (["verify", "DATA=d"], "MODEL"),
        (["verify", "MODEL=m,0"], "DATA"),
    ],
)
def test_a_missing_variable_is_named(built, call, missing):
    done = make(built, *call)
    assert done.returncode == 2
    assert f"{missing} is missing: make {call[0]}" in done.stderr


@needs_make
def test_a_new_pin_rebuilds_and_an_old_one_does_not(built):
    assert make(built, "-q", ".venv/.installed").returncode == 0
    later = (built / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(built / "constraints.txt", (later, later))
    assert make(built, "-q", ".venv/.installed").returncode == 1


@needs_make
@pytest.mark.parametrize(
    ("asked", "again"),
    [((), 0), (("EXTRA=cpu",), 0), (("PYTHON=python3.11",), 0), (("EXTRA=cu112",), 1), (("PYTHON=/other/python",), 1)],
)
def test_who_asks_for_another_build_or_python_gets_it(built, asked, again):
    """What was there already was left as it was, and said to be ready."""
    (built / ".venv" / ".installed").write_text("cpu python3.11\n")
    assert make(built, "-q", ".venv/.installed", *asked).returncode == again


@needs_make
def test_no_usable_python_is_one_line_and_exit_2(checkout):
    done = make(checkout, "install", "PYTHON=/nowhere/python3.11")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(
        "MXNet needs Python 3.8 to 3.11, and '/nowhere/python3.11' is not one"
    )
    assert not (checkout / ".venv").exists()


def fake_python(folder: Path, fails_at: str) -> Path:
    """Return a Python that fails where its command line holds `fails_at`, and else succeeds and says 3.11."""
    path = folder / "fake-python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{fails_at}*) exit 1;; *print*) echo 3.11;; *gpu.py*) echo cpu;; esac\n')
    path.chmod(0o755)
    return path


@needs_make
def test_a_python_without_ensurepip_is_told_what_to_install(checkout):
    done = make(checkout, "install", f"PYTHON={fake_python(checkout, 'ensurepip')}")
    assert done.returncode == 2
    assert "apt-get install python3.11-venv" in done.stderr.splitlines()[0]


@needs_make
def test_a_build_that_fails_leaves_no_stamp(checkout):
    done = make(checkout, "install", f"PYTHON={fake_python(checkout, 'venv?--clear')}")
    assert done.returncode == 2
    assert not (checkout / ".venv" / ".installed").exists()
    assert "ready" not in done.stdout


@needs_make
def test_an_unknown_build_of_mxnet_is_refused(checkout):
    done = make(checkout, "install", "EXTRA=cu90", f"PYTHON={fake_python(checkout, 'nothing')}")
    assert done.returncode == 2
    assert "EXTRA=cu90: give cpu or cu112" in done.stderr


@needs_make
def test_clean_keeps_runs_and_data(built):
    for name in ("runs/a/student-0001.params", "data/train.rec", "src/__pycache__/x.pyc", "build/x"):
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).touch()
    for folder in ("symbols", "eval", "recipes", "tests", "benchmarks"):
        (built / folder).mkdir()
    assert make(built, "clean").returncode == 0
    left = {path.name for path in built.rglob("*")}
    assert {"student-0001.params", "train.rec", "gpu.py"} <= left
    assert not {".venv", "build", "__pycache__"} & left
