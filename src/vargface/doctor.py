"""What is right and wrong with this machine and this environment, a line each, before a training finds out.

Nothing here needs an MXNet that loads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from vargface import gpu, runtime
from vargface.errors import InputError

__all__ = ["FAULT", "OK", "WARNING", "Finding", "examine"]

OK, WARNING, FAULT = "ok", "warning", "fault"
# of MXNet's features, those that decide what can be done here
FEATURES = ("CUDA", "CUDNN", "NCCL", "MKLDNN", "OPENMP", "DIST_KVSTORE")
# less free disk, or memory, than this is said: a run's folder, a full-width training at batch 32
LEAST_DISK, LEAST_MEMORY = 2 << 30, 4 << 30
# cgroups version 2 and 1: files of a container's limit and of what it uses, and what of that can be freed (memory.stat)
CONTAINER_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
# variable -> the value that is slow, or wrong, and why
SLOW_SETTINGS = {
    "MXNET_MKLDNN_ENABLED": ("0", "switches off what makes a CPU fast (docs/training.md)"),
    "MXNET_ENGINE_TYPE": ("NaiveEngine", "does one operation after the other, for debugging"),
    "MXNET_SUBGRAPH_BACKEND": ("NONE", "crashed inference with two threads at batch 1 (docs/insightface.md)"),
}
# some of the files have the same name in both, so that either may lie there
OTHER_CUDA = "another CUDA's wheels share its folders: take an environment without them, pip install '.[cu112]'"
# module -> what pip installs for it (setup.py)
REQUIRED = {
    "cv2": "opencv-python-headless>=4.5,<5",
    "joblib": "joblib>=1.2",
    "sklearn": "scikit-learn>=1.0",
    "matplotlib": "matplotlib>=3.5",
    "tensorboardX": "tensorboardX>=2.6",
    "easydict": "easydict>=1.9",
    "tqdm": "tqdm>=4.60",
}
# OpenCV's other wheels own the same folder
WITH_DISPLAY = "the build without windows needs no libGL: pip uninstall -y opencv-python opencv-contrib-python && "
OPTIONAL = {"onnxruntime": "export onnx, ONNX teachers", "onnx": "export onnx"}


class Finding(NamedTuple):
    """One line: OK, WARNING or FAULT; what was looked at; what was found; what to do, if anything."""

    mark: str
    what: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.mark:<9}{self.what:<16}{self.found}" + (f" - {self.fix}" if self.fix else "")


def examine(folder: str | Path = ".") -> list[Finding]:
    """Return what there is to say of this process and machine; `folder` is where runs would be written."""
    flavours = runtime.flavours()
    seen = gpu.survey()
    try:
        mxnet: ModuleType | InputError = runtime.mx
        cuda_build = mxnet.runtime.Features().is_enabled("CUDA")
    except InputError as error:
        mxnet, cuda_build = error, any(name.startswith("mxnet-cu") for name in flavours)
    return [
        *_python(sys.version_info[:2], importlib.util.find_spec("distutils") is not None),
        *_mxnet(mxnet, flavours),
        *_numpy(np.__version__),
        *_required(),
        *_optional(),
        *_threads(runtime.THREADS, runtime.cores()),
        *_settings(os.environ),
        *_gpus(seen, flavours, cuda_build),
        *(_cuda_libraries(not isinstance(mxnet, InputError)) if "mxnet-cu112" in flavours else ()),
        *_space(shutil.disk_usage(folder).free, _available_memory()),
    ]


def _python(version: tuple[int, int], distutils: bool) -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if version < (3, 8):
        yield Finding(FAULT, "Python", found, "too old: use Python 3.8 to 3.11")
    elif version < (3, 12):
        yield Finding(OK, "Python", found)
    elif distutils:
        yield Finding(WARNING, "Python", found, "MXNet 1.9.1 is of 2022, tests crashed on 3.12: use Python 3.8 to 3.11")
    else:
        yield Finding(FAULT, "Python", found, "MXNet 1.9.1 needs distutils, which it lacks: use Python 3.8 to 3.11")


def _mxnet(mxnet: ModuleType | InputError, flavours: Sequence[str]) -> Iterator[Finding]:
    if isinstance(mxnet, InputError):
        found, _, fix = str(mxnet).partition(" - ")
        yield Finding(FAULT, "MXNet", found, fix)
        return
    features = mxnet.runtime.Features()
    enabled = [name for name in FEATURES if features.is_enabled(name)]
    found = f"{mxnet.__version__} ({', '.join(flavours) or 'built here'}): {', '.join(enabled)}"
    if mxnet.__version__ == "1.9.1":
        yield Finding(OK, "MXNet", found)
    else:
        yield Finding(WARNING, "MXNet", found, "not tried: use 1.9.1")


def _numpy(version: str) -> Iterator[Finding]:
    major, minor = (int(number) for number in version.split(".")[:2])
    if major >= 2:
        yield Finding(FAULT, "numpy", version, "MXNet 1.9.1 needs an older one: pip install 'numpy<2'")
    elif (major, minor) >= (1, 24):
        yield Finding(OK, "numpy", f"{version}; the names that MXNet 1.9.1 misses in it are given back")
    elif (major, minor) < (1, 23):
        yield Finding(WARNING, "numpy", version, "not tried: pip install 'numpy>=1.23,<2'")
    else:
        yield Finding(OK, "numpy", version)


def _required() -> Iterator[Finding]:
    """Import every package that is always needed, where numpy is one that they were built for."""
    try:
        runtime.check_numpy()
    except InputError:
        return
    good = []
    for name, package in REQUIRED.items():
        try:
            module = importlib.import_module(name)
        except Exception as error:  # of a package built for another numpy it may be any
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            fix = f"pip install --force-reinstall --no-deps '{package}'"
            yield Finding(FAULT, name, f"does not load: {why}", WITH_DISPLAY + fix if "libGL" in why else fix)
        else:
            good.append(f"{name} {getattr(module, '__version__', '')}".strip())
    if good:
        yield Finding(OK, "packages", ", ".join(good))


def _optional() -> Iterator[Finding]:
    for name, use in OPTIONAL.items():
        try:
            yield Finding(OK, name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(WARNING, name, f"not installed ({use})", "if you need it: pip install '.[export]'")


def _threads(asked: str, cores: int) -> Iterator[Finding]:
    if not asked:
        yield Finding(OK, "threads", f"{cores} cores, OMP_NUM_THREADS is set as each command needs it")
    elif not runtime.is_thread_count(asked):
        yield Finding(FAULT, "threads", f"OMP_NUM_THREADS={asked}", "MXNet ends with any but a whole number: unset it")
    elif int(asked) > cores:
        fix = f"threads would wait for each other: unset it, or give {cores}"
        yield Finding(WARNING, "threads", f"OMP_NUM_THREADS={asked} on {cores} cores", fix)
    else:
        yield Finding(OK, "threads", f"OMP_NUM_THREADS={asked} on {cores} cores, as you set it")


def _settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, (value, why) in SLOW_SETTINGS.items():
        if environment.get(name) == value:
            yield Finding(WARNING, "environment", f"{name}={value}", f"{why}: unset it")


def _gpus(seen: gpu.Survey, flavours: Sequence[str], cuda_build: bool) -> Iterator[Finding]:
    installed = " ".join(flavours)
    extra, reason = gpu.choose(seen)
    if extra == "cpu" and not seen.gpus:
        fix = runtime.USE_CPU.format(installed) if cuda_build and installed else ""
        yield Finding(FAULT if cuda_build else OK, "GPU", f"none to use: {reason}", fix)
        return
    for found in seen.gpus:
        if gpu.supported(found.capability):
            yield Finding(OK, "GPU", str(found))
        else:
            fix = "MXNet 1.9.1 has code for compute capability 5.0 to 8.9 only: train on the CPU, or on another GPU"
            yield Finding(WARNING, "GPU", str(found), fix)
    version = ", ".join(filter(None, [_driver_version(), "speaks CUDA {}.{}".format(*seen.cuda)]))
    if seen.cuda < gpu.OLDEST_CUDA:
        yield Finding(FAULT if cuda_build else WARNING, "driver", version, "too old: 450.80 or later (CUDA 11.0)")
    else:
        yield Finding(OK, "driver", version)
    if extra == "cu112" and not cuda_build:
        fix = f"pip uninstall -y {installed} && pip install '.[cu112]'" if installed else "pip install '.[cu112]'"
        yield Finding(WARNING, "GPU", f"not used by a CPU build ({installed or 'of MXNet, built here'})", fix)


def _driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the NVIDIA driver's own number, as 535.54.03, "" where the kernel does not say."""
    try:
        found = re.search(r"\b\d{3,}\.[\d.]+\b", file.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


def _cuda_libraries(mxnet_loads: bool, load: Callable[..., Any] = ctypes.CDLL) -> Iterator[Finding]:
    """Look for each library that mxnet-cu112 needs, and load it."""
    for name, files in runtime.cuda_files().items():
        for file in files:
            if file.name != name:
                yield Finding(FAULT, "CUDA library", f"{file.name} found, mxnet-cu112 needs {name}", OTHER_CUDA)
                continue
            try:
                load(str(file), mode=ctypes.RTLD_GLOBAL)
                yield Finding(OK, "CUDA library", file.name)
            except OSError as error:
                yield Finding(
                    FAULT, "CUDA library", f"{file.name} does not load ({error})", runtime.CUDA_LIBRARIES_ANEW
                )
    missing = ", ".join(runtime.missing_cuda())
    if missing and mxnet_loads:
        found = f"{missing}: not from pip; the system's own is used, if any"
        yield Finding(WARNING, "CUDA library", found, runtime.CUDA_LIBRARIES)
    elif missing:
        yield Finding(FAULT, "CUDA library", f"{missing}: not from pip", runtime.CUDA_LIBRARIES)


def _space(disk: int, memory: int | None) -> Iterator[Finding]:
    mark = OK if disk >= LEAST_DISK else WARNING
    yield Finding(mark, "free disk", f"{disk / 2**30:.1f} GiB here", "" if mark == OK else "a run may need more")
    if memory is not None:
        mark = OK if memory >= LEAST_MEMORY else WARNING
        fix = "" if mark == OK else "take a smaller batch_size (accumulate=N keeps the gradient)"
        yield Finding(mark, "free memory", f"{memory / 2**30:.1f} GiB", fix)


def _available_memory(files: Path = Path("/")) -> int | None:
    """Return the bytes that are free or can be freed, also in this container; None where no file says."""
    try:
        lines = dict(line.split(":") for line in (files / "proc/meminfo").read_text().splitlines())
        free = [int(lines["MemAvailable"].split()[0]) * 1024]
    except (OSError, KeyError, ValueError):
        free = []
    for limit, used, cache in CONTAINER_MEMORY:
        with contextlib.suppress(OSError, KeyError, ValueError):  # another version of cgroups, or no limit: "max"
            folder = files / "sys/fs/cgroup" / Path(limit).parent
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            held = int((folder / used).read_text()) - int(statistics[cache])
            free.append(max(int((folder / Path(limit).name).read_text()) - held, 0))
    return min(free, default=None)
