"""The choice of MXNet's build, against drivers that are made up."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from stub_driver import compile_driver

from vargface import gpu
from vargface.gpu import Gpu, Survey, choose, survey

SCRIPT = Path(gpu.__file__)


class Driver:
    """libcuda with the GPUs given; `failing` is a function that returns an error."""

    def __init__(self, *gpus: Gpu, version: int = 12020, failing: str = "") -> None:
        self.gpus, self.version, self.failing = gpus, version, failing

    def __getattr__(self, function: str):
        return lambda *arguments: 999 if function == self.failing else getattr(self, f"_{function}")(*arguments)

    def _cuInit(self, flags):
        assert flags == 0
        return 0 if self.gpus else 100  # CUDA_ERROR_NO_DEVICE

    def _cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def _cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def _cuDeviceGet(self, device, ordinal):
        device._obj.value = 40 + ordinal  # a handle, which need not be the ordinal
        return 0

    def _cuDeviceGetName(self, name, size, device):
        name.value = self.gpus[device.value - 40].name.encode()[: size - 1]
        return 0

    def _cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.gpus[device.value - 40].capability[{75: 0, 76: 1}[attribute]]
        return 0


def no_library(name: str):
    raise OSError(f"{name}: cannot open shared object file")


def tool(folder: Path, text: str) -> Path:
    """Write an executable nvidia-smi of this shell text into `folder` and return the folder."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("capability", "extra"),
    [
        ((3, 7), "cpu"),
        ((4, 9), "cpu"),
        ((5, 0), "cu112"),
        ((6, 1), "cu112"),
        ((7, 5), "cu112"),
        ((8, 9), "cu112"),
        ((9, 0), "cpu"),
        ((10, 0), "cpu"),
        ((12, 0), "cpu"),
    ],
)
def test_the_capability_decides(capability, extra):
    chosen, reason = choose(survey(lambda name: Driver(Gpu("Some GPU", capability))))
    assert chosen == extra
    assert f"Some GPU ({capability[0]}.{capability[1]})" in reason
    assert "\n" not in reason


def test_survey_gives_every_gpu_in_order_and_the_cuda_version():
    gpus = (Gpu("A", (8, 6)), Gpu("B", (9, 0)), Gpu("C", (7, 5)))
    assert survey(lambda name: Driver(*gpus, version=11020)) == Survey(gpus, (11, 2), "")


def test_one_usable_gpu_among_others_is_enough():
    extra, reason = choose(survey(lambda name: Driver(Gpu("Hopper", (9, 0)), Gpu("Turing", (7, 5)))))
    assert (extra, reason) == ("cu112", "Turing (7.5)")


@pytest.mark.parametrize(("version", "extra"), [(10020, "cpu"), (11000, "cu112"), (12080, "cu112")])
def test_the_driver_must_speak_cuda_11(version, extra):
    chosen, reason = choose(survey(lambda name: Driver(Gpu("Turing", (7, 5)), version=version)))
    assert chosen == extra
    assert ("CUDA 10.2" in reason) == (extra == "cpu")


@pytest.mark.parametrize(
    "failing",
    ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"],
)
def test_a_driver_that_fails_means_cpu_and_says_where(failing):
    extra, reason = choose(survey(lambda name: Driver(Gpu("Turing", (7, 5)), failing=failing)))
    assert extra == "cpu"
    assert f"{failing}: error 999" in reason


@pytest.mark.parametrize(("code", "hidden"), [(803, True), (999, True), (100, False), (34, False)])
def test_a_driver_that_fails_hides_a_gpu_and_one_without_does_not(code, hidden):
    seen = survey(lambda name: types.SimpleNamespace(cuInit=lambda flags: code))
    assert (seen.gpus, seen.hidden) == ((), hidden)


def test_a_driver_without_a_gpu_means_cpu():
    assert choose(survey(lambda name: Driver())) == ("cpu", "the NVIDIA driver offers no GPU (cuInit: error 100)")


@pytest.mark.parametrize("text", [None, "exit 9", "echo; exit 0"], ids=["absent", "failing", "listing nothing"])
def test_without_libcuda_and_nvidia_smi_there_is_no_driver(text, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path if text is None else tool(tmp_path, text)))
    seen = survey(no_library)
    extra, reason = choose(seen)
    assert (extra, seen.hidden) == ("cpu", False)
    assert reason == "no NVIDIA driver (libcuda.so.1: cannot open shared object file)"


def test_nvidia_smi_without_libcuda_is_explained(tmp_path, monkeypatch):
    # MXNet links libcuda: a container given nvidia-smi alone cannot run it, however good the GPU
    monkeypatch.setenv("PATH", str(tool(tmp_path, 'echo "Tesla T4, 7.5, 535.54.03"')))
    seen = survey(no_library)
    extra, reason = choose(seen)
    assert (extra, seen.hidden) == ("cpu", True)
    assert "nvidia-smi lists Tesla T4, 7.5, 535.54.03" in reason
    assert "driver capability 'compute'" in reason


def test_a_library_of_that_name_that_is_none_means_cpu():
    extra, reason = choose(survey(lambda name: ctypes.CDLL(None)))  # this process: no cuInit in it
    assert (extra, reason) == ("cpu", "the NVIDIA driver offers no GPU (its libcuda.so.1 has no cuInit)")


def run_bare(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run gpu.py as the Makefile does, without site-packages."""
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)


def test_script_answers_from_a_bare_python():
    done = run_bare(CUDA_VISIBLE_DEVICES="")
    assert done.stdout == "cpu\n"
    assert done.stderr.startswith("cpu: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a stub driver with")
@pytest.mark.parametrize(("major", "minor", "extra"), [(8, 6, "cu112"), (9, 0, "cpu")])
def test_script_asks_a_real_library(major, minor, extra, tmp_path):
    compile_driver(tmp_path, (major, minor))
    ctypes.CDLL(str(tmp_path / "libcuda.so.1"))
    done = run_bare(LD_LIBRARY_PATH=str(tmp_path))
    assert done.stdout == f"{extra}\n"
    assert f"Stub GPU ({major}.{minor})" in done.stderr
