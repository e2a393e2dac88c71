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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from vargface import cuda, gpu, packages, runtime
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
    "MXNET_SUBGRAPH_BACKEND": ("NONE", "crashed inference with two threads at batch 1 (docs/inference.md)"),
}


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
    loads = not isinstance(mxnet, InputError)
    return [
        *_python(sys.version_info[:2], importlib.util.find_spec("distutils") is not None),
        *_mxnet(mxnet, flavours),
        *_numpy(np.__version__),
        *_required(),
        *_optional(),
        *_threads(runtime.THREADS),
        *_settings(os.environ),
        *_gpus(seen, flavours, cuda_build, loads),
        *(_cuda_libraries(loads) if "mxnet-cu112" in flavours else ()),
        *_space(shutil.disk_usage(folder).free, _available_memory()),
    ]


def _python(version: tuple[int, int], distutils: bool) -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    elsewhere, untried = gpu.platform_fault()
    if elsewhere:
        yield Finding(WARNING if untried else FAULT, "Python", found, elsewhere)
    elif version < (3, 8):
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
    if mxnet.__version__ != "1.9.1":
        yield Finding(WARNING, "MXNet", found, f"not tried: use 1.9.1: {packages.install('cpu')}")
    elif _other_cuda(flavours):
        yield Finding(WARNING, "MXNet", found, f"not tried: {packages.instead(flavours, 'cu112')}")
    else:
        yield Finding(OK, "MXNet", found)


def _other_cuda(flavours: Sequence[str]) -> bool:
    """Whether MXNet was built for a CUDA whose GPUs and libraries are not known here."""
    return any(name.startswith("mxnet-cu") and name != "mxnet-cu112" for name in flavours)


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
    yield from _loaded("packages", packages.REQUIRED, FAULT)


def _optional() -> Iterator[Finding]:
    """Import those of the extra `export`, if any is there."""
    try:
        importlib.metadata.distribution("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        fix = f"for ONNX teachers, export onnx, export int8: {packages.install('export')}"
        yield Finding(WARNING, "ONNX", "not installed", fix)
        return
    yield from _loaded("ONNX", packages.OPTIONAL, WARNING)


def _loaded(what: str, modules: Iterable[str], mark: str) -> Iterator[Finding]:
    """Yield a finding of `mark` for each module that does not load, and one with the versions of all that do."""
    faults = packages.broken(modules)
    for fault in faults:
        yield Finding(mark, fault.name, f"does not load: {fault.why}", fault.fix)
    good = [name for name in modules if name not in {fault.name for fault in faults}]
    if good:
        versions = [f"{name} {getattr(sys.modules[name], '__version__', '')}".strip() for name in good]
        yield Finding(OK, what, ", ".join(versions))


def _threads(asked: str) -> Iterator[Finding]:
    try:
        cores = runtime.cores()
    except InputError:  # joblib is told of above
        return
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


def _gpus(seen: gpu.Survey, flavours: Sequence[str], cuda_build: bool, loads: bool) -> Iterator[Finding]:
    extra, reason = gpu.choose(seen)
    if not seen.gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        fix = f"for the CPU build: {packages.instead(flavours, 'cpu')}" if cuda_build and flavours else ""
        if cuda_build and visible is not None:
            fix = f"CUDA_VISIBLE_DEVICES={visible!r} says which may be used: unset it to see all"
        mark = WARNING if loads else FAULT
        yield Finding(mark if cuda_build else OK, "GPU", f"none to use, the CPU it is: {reason}", fix)
        return
    for found in seen.gpus:
        if _other_cuda(flavours):
            yield Finding(WARNING, "GPU", f"{found}: whether {flavours[0]} has code for it is not known")
        elif gpu.supported(found.capability):
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
        fix = packages.instead(flavours, "cu112") if flavours else packages.install("cu112")
        yield Finding(WARNING, "GPU", f"not used by a CPU build ({' '.join(flavours) or 'of MXNet, built here'})", fix)


def _driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the NVIDIA driver's own number, as 535.54.03, "" where the kernel does not say."""
    try:
        found = re.search(r"\b\d{3,}\.[\d.]+\b", file.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


def _cuda_libraries(mxnet_loads: bool, load: Callable[..., Any] = ctypes.CDLL) -> Iterator[Finding]:
    """Look for each library that mxnet-cu112 needs, and load it."""
    fix = f"for its CUDA libraries: {packages.install('cu112')}"
    for name, files in cuda.installed_files().items():
        for file in files:
            if file.name != name:
                # some of the files have the same name in both, so that either may lie there
                other = "another CUDA's wheels share its folders: take an environment without them"
                yield Finding(FAULT, "CUDA library", f"{file.name} found, mxnet-cu112 needs {name}", other)
                continue
            try:
                load(str(file), mode=ctypes.RTLD_GLOBAL)
                yield Finding(OK, "CUDA library", file.name)
            except OSError as error:
                anew = packages.anew(*packages.requirements("cu112"))
                yield Finding(FAULT, "CUDA library", f"{file.name} does not load ({error})", anew)
    missing = ", ".join(cuda.missing())
    if missing and mxnet_loads:
        yield Finding(WARNING, "CUDA library", f"{missing}: not from pip; the system's own is used, if any", fix)
    elif missing:
        yield Finding(FAULT, "CUDA library", f"{missing}: not from pip", fix)


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
