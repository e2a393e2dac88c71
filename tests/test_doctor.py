"""What `vargface doctor` says of machines that this one is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
from stub_driver import compile_driver

from vargface import cuda, doctor, gpu, packages, runtime
from vargface.cli import main
from vargface.doctor import FAULT, OK, WARNING
from vargface.errors import InputError
from vargface.gpu import Gpu, Survey

RTX = Gpu("RTX 3090", (8, 6))
HOPPER = Gpu("H100", (9, 0))


class Cuda:
    """Stands for `mxnet.runtime` of a CUDA build."""

    class Features:
        def is_enabled(self, name):
            return name == "CUDA"


@pytest.fixture
def look(monkeypatch, tmp_path):
    """Examine a machine with the GPUs, builds of MXNet, ... given; {what: [findings]}."""

    list(doctor._required())  # imported before the machine is another
    monkeypatch.setattr(packages, "made_by_make", lambda: False)
    here = runtime._mxnet

    def call(survey=None, flavours=("mxnet",), **differing):
        monkeypatch.setattr(gpu, "survey", lambda: survey or Survey((), (0, 0), "no NVIDIA driver (x)"))
        monkeypatch.setattr(runtime, "flavours", lambda: list(flavours))
        cuda = types.SimpleNamespace(__version__="1.9.1", runtime=Cuda)
        monkeypatch.setattr(runtime, "_mxnet", (lambda: cuda) if "-cu" in " ".join(flavours) else here)
        for name, value in differing.items():
            monkeypatch.setattr(*{"numpy": (doctor.np, "__version__"), "threads": (runtime, "THREADS")}[name], value)
        found: dict[str, list[doctor.Finding]] = {}
        for finding in doctor.examine(tmp_path):
            found.setdefault(finding.what, []).append(finding)
        return found

    return call


def marks(findings) -> list[str]:
    return [finding.mark for finding in findings]


def test_here_nothing_is_at_fault_and_every_line_begins_with_its_mark(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {OK, WARNING}
    names = {line[9:25].strip() for line in lines}
    assert {"Python", "MXNet", "numpy", "threads", "GPU", "free disk", "free memory"} <= names
    assert any("1.9.1" in line and "MKLDNN" in line for line in lines)


def test_a_fault_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding(FAULT, "MXNet", "is broken", "mend it")])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.split() == ["fault", "MXNet", "is", "broken", "-", "mend", "it"]


def test_an_mxnet_that_does_not_load_is_told_with_its_fix(look, monkeypatch):
    def refuse(name):
        raise InputError(
            "mxnet and mxnet-cu112 are installed side by side but own the same folder - pip uninstall -y x"
        )

    monkeypatch.setattr(runtime, "__getattr__", refuse)
    (found,) = look(flavours=("mxnet", "mxnet-cu112"))["MXNet"]
    assert (found.mark, found.fix) == (FAULT, "pip uninstall -y x")
    assert found.found.startswith("mxnet and mxnet-cu112 are installed side by side")


@pytest.mark.parametrize(("version", "mark"), [("1.22.4", WARNING), ("1.23.5", OK), ("1.26.4", OK), ("2.0.1", FAULT)])
def test_numpy(look, version, mark):
    assert marks(look(numpy=version)["numpy"]) == [mark]


@pytest.mark.parametrize(
    ("version", "distutils", "mark"),
    [((3, 7), True, FAULT), ((3, 8), True, OK), ((3, 11), True, OK), ((3, 12), True, WARNING), ((3, 12), False, FAULT)],
)
def test_python(look, monkeypatch, version, distutils, mark):
    monkeypatch.setattr(doctor.sys, "version_info", (*version, 0, "final", 0))
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: (types.SimpleNamespace() if distutils else None) if name == "distutils" else find(name),
    )
    assert marks(look()["Python"]) == [mark]


@pytest.mark.parametrize(
    ("asked", "mark"),
    [("", OK), ("1", OK), ("100000", WARNING), ("0", FAULT), ("all", FAULT), ("2,2", FAULT), ("²", FAULT)],
)
def test_threads(look, asked, mark):
    assert marks(look(threads=asked)["threads"]) == [mark]


def test_settings_that_slow_everything_down_are_named(look, monkeypatch):
    assert "environment" not in look()
    monkeypatch.setenv("MXNET_MKLDNN_ENABLED", "0")
    monkeypatch.setenv("MXNET_ENGINE_TYPE", "ThreadedEnginePerDevice")
    (found,) = look()["environment"]
    assert found.mark == WARNING
    assert "MXNET_MKLDNN_ENABLED=0" in found.found


def test_without_a_gpu_the_cpu_build_is_right(look):
    assert marks(look()["GPU"]) == [OK]


def test_a_cuda_build_without_a_gpu_works_on_the_cpu_where_it_loads(look, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = look(flavours=["mxnet-cu112"])["GPU"]
    assert marks(found) == [WARNING]
    assert "mxnet-cu112" in found[0].fix  # what to take out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' says" in look(flavours=["mxnet-cu112"])["GPU"][0].fix


def test_a_cuda_build_that_does_not_load_without_a_gpu_is_a_fault(look, monkeypatch):
    def refuse(name):
        raise InputError("mxnet-cu112 is installed but does not load: no NVIDIA driver - x")

    monkeypatch.setattr(runtime, "__getattr__", refuse)
    assert marks(look(flavours=["mxnet-cu112"])["GPU"]) == [FAULT]


def test_a_gpu_that_the_build_does_not_use(look):
    found = look(Survey((RTX,), (12, 2), ""))
    assert marks(found["GPU"]) == [OK, WARNING]
    assert "pip install mxnet-cu112==1.9.1 " in found["GPU"][1].fix
    assert marks(found["driver"]) == [OK]


def test_a_gpu_without_code_in_mxnet(look):
    found = look(Survey((HOPPER, RTX), (12, 2), ""), flavours=["mxnet-cu112"])
    assert marks(found["GPU"]) == [WARNING, OK]
    assert "5.0 to 8.9" in found["GPU"][0].fix
    assert marks(look(Survey((HOPPER,), (12, 2), ""))["GPU"]) == [WARNING]  # the CPU build is right for it


def test_a_driver_that_is_too_old(look):
    survey = Survey((RTX,), (10, 2), "")
    assert marks(look(survey, flavours=["mxnet-cu112"])["driver"]) == [FAULT]
    assert marks(look(survey)["driver"]) == [WARNING]


def test_cuda_libraries_are_loaded_one_by_one(look, monkeypatch, tmp_path):
    """A good one, one that is no library, one that pip has not brought, and one of another CUDA."""
    bad = tmp_path / "libbad.so.1"
    bad.write_bytes(b"no library")
    good = tmp_path / "libgood.so.1"
    source = tmp_path / "empty.c"
    source.write_text("")
    if subprocess.run(["cc", "-shared", "-o", str(good), str(source)], check=False).returncode:
        pytest.skip("no C compiler")
    other = tmp_path / "libother.so.12"
    files = {"libgood.so.1": [good], "libbad.so.1": [bad], "libnone.so.1": [], "libother.so.11": [other]}
    monkeypatch.setattr(cuda, "installed_files", lambda: files)
    found = look(Survey((RTX,), (12, 2), ""), flavours=["mxnet-cu112"])["CUDA library"]
    assert marks(found) == [OK, FAULT, FAULT, WARNING]
    assert [finding.found.split()[0] for finding in found[:2]] == ["libgood.so.1", "libbad.so.1"]
    assert found[2].found == "libother.so.12 found, mxnet-cu112 needs libother.so.11"
    assert found[3].found.startswith("libnone.so.1, libother.so.11: not from pip; the system's own is used")


def test_missing_cuda_libraries_are_a_fault_where_mxnet_does_not_load(look, monkeypatch):
    def refuse(name):
        raise InputError("mxnet-cu112 is installed but does not load: libcudart.so.11.0: no such file - x")

    monkeypatch.setattr(runtime, "__getattr__", refuse)
    monkeypatch.setattr(cuda, "installed_files", lambda: {"libcudart.so.11.0": []})
    (found,) = look(Survey((RTX,), (12, 2), ""), flavours=["mxnet-cu112"])["CUDA library"]
    assert (found.mark, found.found) == (FAULT, "libcudart.so.11.0: not from pip")
    assert found.fix.startswith(
        "for its CUDA libraries: pip install mxnet-cu112==1.9.1 nvidia-cuda-runtime-cu11==11.8.89 "
    )


def test_a_required_package_that_does_not_load_is_a_fault(look, monkeypatch):
    load = packages.importlib.import_module

    def fail(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        if name == "scipy":
            raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")
        return load(name)

    monkeypatch.setattr(packages.importlib, "import_module", fail)
    found = look()
    assert str(found["cv2"][0]).startswith("fault    cv2             does not load: libGL.so.1: cannot open")
    assert "opencv-python-headless" in found["cv2"][0].fix
    assert "uninstall -y opencv-python " in found["cv2"][0].fix
    assert found["scipy"][0].mark == FAULT
    assert found["scipy"][0].fix == "pip install --force-reinstall --no-deps 'scipy>=1.7'"
    assert marks(found["packages"]) == [OK]
    assert "tqdm" in found["packages"][0].found
    assert "cv2" not in found["packages"][0].found


def test_what_is_imported_is_required_and_looked_at():
    """Every package that the code imports, and no other, is asked for by setup.py and tried by doctor."""
    root = Path(__file__).parents[1]
    files = [path for folder in ("src", "symbols", "eval", "recipes") for path in (root / folder).rglob("*.py")]
    text = "\n".join(path.read_text() for path in files)
    imported = {name for name in re.findall(r"(?:^ *(?:import|from) |require\(\")([A-Za-z]\w*)", text, re.MULTILINE)}
    asked = {name.partition(".")[0] for name in (*packages.REQUIRED, *packages.OPTIONAL)}
    installed = {name for name in imported if "site-packages" in str(getattr(find_spec(name), "origin", ""))}
    # numpy's choice for onnx, and what ONNX Runtime's quantiser imports by itself
    assert asked - installed == {"google", "sympy", "ml_dtypes"} & asked
    assert installed - asked == {"mxnet"}
    for extra, modules in {"": packages.REQUIRED, "export": packages.OPTIONAL}.items():
        names = {packages._name(line) for line in packages.requirements(extra)}
        assert names == {packages._name(package) for package in modules.values()} | ({"ml-dtypes"} & names)


@pytest.mark.parametrize("name", packages.REQUIRED)
def test_a_package_that_is_missing_is_one_line_whatever_the_command(name):
    """Also where the command line itself cannot be loaded without it."""
    code = (
        f"import sys; sys.modules[{name!r}] = None; sys.argv = ['vargface', 'doctor']\n"
        "from vargface.__main__ import run; sys.exit(run())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "does not load" in line]
    assert [line for line in lines if f"{name} " in line and "install" in line]


def test_the_commands_that_mend(monkeypatch):
    monkeypatch.setattr(packages, "made_by_make", lambda: True)
    assert packages.install("cu112") == "make install EXTRA=cu112"
    assert packages.instead(["mxnet-cu112"], "cpu") == "make install EXTRA=cpu"
    assert packages.install("export") == packages.anew("scipy>=1.7") == "make clean install"
    monkeypatch.setattr(packages, "made_by_make", lambda: False)
    assert packages.install("cpu") == "pip install mxnet==1.9.1"
    assert packages.instead(["mxnet", "mxnet-cu112"], "cpu") == (
        "pip uninstall -y mxnet mxnet-cu112 && pip install mxnet==1.9.1"
    )
    assert packages.anew("scipy>=1.7") == "pip install --force-reinstall --no-deps 'scipy>=1.7'"


@pytest.mark.parametrize(
    ("where", "fault", "built"),
    [
        (("Linux", "x86_64", "glibc"), "", False),
        (("Linux", "x86_64", ""), "no build for Linux x86_64 without glibc", False),
        (("Linux", "aarch64", "glibc"), "not tried", True),
        (("Darwin", "x86_64", ""), "not tried", True),
        (("Darwin", "arm64", ""), "no build for Darwin arm64", False),
        (("Windows", "AMD64", ""), "no build for Windows AMD64", False),
    ],
)
def test_platforms(look, monkeypatch, where, fault, built):
    for name, value in zip(("system", "machine", "libc_ver"), (*where[:2], (where[2], ""))):
        monkeypatch.setattr(gpu.platform, name, lambda value=value: value)
    found = gpu.platform_fault()
    assert (fault in found[0], bool(found[0]), found[1]) == (True, bool(fault), built)
    assert marks(look()["Python"]) == [WARNING if built else FAULT if fault else OK]


def test_a_cuda_build_is_known_by_its_features_and_called_by_its_name(look):
    found = look(Survey((RTX,), (12, 2), ""), flavours=["mxnet-cu110"])
    assert marks(found["MXNet"] + found["GPU"]) == [WARNING, WARNING]  # its GPUs are others than mxnet-cu112's
    assert "1.9.1 (mxnet-cu110): CUDA" in found["MXNet"][0].found
    assert "pip uninstall -y mxnet-cu110 &&" in found["MXNet"][0].fix


def test_a_cpu_build_is_called_by_its_name(look):
    found = look(Survey((RTX,), (12, 2), ""), flavours=["mxnet-mkl"])["GPU"][1]
    assert (found.found, found.fix) == (
        "not used by a CPU build (mxnet-mkl)",
        packages.instead(["mxnet-mkl"], "cu112"),
    )


@pytest.mark.parametrize("beside", [True, False], ids=["CUDA 12 beside", "CUDA 12 only"])
def test_the_libraries_of_another_cuda_are_a_fault_that_names_both(look, monkeypatch, tmp_path, beside):
    folder = tmp_path / "nvidia" / "cuda_runtime" / "lib"
    folder.mkdir(parents=True)
    for name in ("libcudart.so.12", "libcudart.so.11.0")[: 1 + beside]:
        (folder / name).touch()
    where = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    find = cuda.importlib.util.find_spec
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: where if name == "nvidia" else find(name))
    loaded = []
    monkeypatch.setattr(doctor._cuda_libraries, "__defaults__", (lambda name, mode: loaded.append(name),))
    found = look(Survey((RTX,), (12, 2), ""), flavours=["mxnet-cu112"])["CUDA library"]
    texts = [finding.found for finding in found if finding.mark == FAULT]
    assert "libcudart.so.12 found, mxnet-cu112 needs libcudart.so.11.0" in texts
    assert loaded == [str(folder / "libcudart.so.11.0")] * beside


@pytest.mark.skipif(
    "VARGFACE_CU112" not in os.environ,
    reason="set VARGFACE_CU112 to the Python of an environment with '.[cu112]' (2.1 GB of downloads)",
)
def test_the_cuda_build_and_its_libraries_load_with_a_driver_that_is_a_stub(tmp_path):
    """Every symbol of the driver's that libmxnet.so wants, so that it loads; no GPU does anything."""
    python = os.environ["VARGFACE_CU112"]
    where = "import importlib.util as u; print(u.find_spec('mxnet').submodule_search_locations[0])"
    folder = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    listed = subprocess.run(["nm", "-D", f"{folder}/libmxnet.so"], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[1].split("@")[0] for line in listed.splitlines() if line.split()[0] == "U"}
    compile_driver(tmp_path, (8, 6), sorted(name for name in wanted if name[:2] == "cu" and name[2:3].isupper()))
    code = "import sys; from vargface.cli import main; sys.exit(main(['doctor']))"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any("mxnet-cu112" in line and "CUDNN" in line for line in lines)
    assert sum(line.startswith("ok       CUDA library") for line in lines) == 17


def test_little_space_is_a_warning_with_what_to_do(look, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1 << 20))
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1 << 30)
    found = look()
    assert marks(found["free disk"] + found["free memory"]) == [WARNING, WARNING]
    assert "batch_size" in found["free memory"][0].fix


def kernel(folder: Path, files: dict[str, str]) -> Path:
    """A root folder in which the kernel's `files` say this."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 4000 kB\n"}, 4000 << 10),
        (
            {
                "proc/meminfo": "MemAvailable: 4000 kB\n",
                "sys/fs/cgroup/memory.max": "2048000\n",
                "sys/fs/cgroup/memory.current": "1024000\n",
                "sys/fs/cgroup/memory.stat": "anon 24000\ninactive_file 1000000\n",
            },
            2024000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 4000 kB\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2048000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "3000000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
            },
            0,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 4000 kB\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "1\n",
                "sys/fs/cgroup/memory.stat": "inactive_file 0\n",
            },
            4000 << 10,
        ),
    ],
)
def test_a_containers_limit_counts_and_its_cache_does_not(tmp_path, files, free):
    assert doctor._available_memory(kernel(tmp_path, files)) == free


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\n", "470.82.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.54.03  Release Build\n", "535.54.03"),
        ("something else\n", ""),
    ],
)
def test_the_drivers_own_number(tmp_path, text, version):
    assert doctor._driver_version(kernel(tmp_path, {"version": text}) / "version") == version
    assert doctor._driver_version(tmp_path / "absent") == ""


def test_it_runs_where_nothing_of_mxnet_is_installed(tmp_path):
    """In an interpreter that cannot see MXNet: a fault with the command that installs it, no traceback."""
    code = (
        "import importlib.util, importlib.metadata, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'mxnet' else find(name, *a)\n"
        "from vargface import runtime\n"
        "runtime.flavours = lambda: []\n"
        "from vargface.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(FAULT)]
    assert "MXNet is not installed" in line
    assert packages.install("cpu") in line
