"""Which build of MXNet fits this machine: `cpu`, or `cu112` where an NVIDIA GPU can run it.

Standard library alone and nothing of ours, so that `python src/vargface/gpu.py` answers before anything is installed.
It prints the choice on stdout and the reason, in one line, on stderr; where there is no build at all, it fails.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Gpu", "Survey", "choose", "platform_fault", "supported", "survey"]

# mxnet-cu112 1.9.1 holds machine code for 5.0, 6.0, 7.0, 8.0 and 8.6 and no PTX to compile for others. Code for X.y
# runs on every X.z with z >= y, so 5.0 to 8.9 are covered and 9.0 (Hopper) and later are not.
OLDEST_CAPABILITY = (5, 0)
NEWEST_CAPABILITY = (8, 9)
# the oldest CUDA a driver may speak for CUDA 11 libraries to run on it (minor version compatibility)
OLDEST_CUDA = (11, 0)

# CUdevice_attribute values of cuda.h
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
# no such function, CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_NO_DEVICE: no driver in earnest, or no GPU that is to be seen
NOTHING_THERE = (None, 34, 100)


class Gpu(NamedTuple):
    """One NVIDIA GPU: its name and its compute capability, (8, 6) for 8.6."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} ({_dotted(self.capability)})"


class Survey(NamedTuple):
    """What the driver says: its GPUs in CUDA's order, the newest CUDA it speaks, and what is wrong if anything is.

    hidden: a driver is there and fails, or nvidia-smi lists GPUs that the driver's library does not offer.
    """

    gpus: tuple[Gpu, ...]
    cuda: tuple[int, int]
    fault: str
    hidden: bool = False


class _CudaError(Exception):
    """A call of the driver's that did not return CUDA_SUCCESS but `code`; None where it has no such function."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def supported(capability: tuple[int, int]) -> bool:
    """Whether mxnet-cu112 has code for a GPU of this compute capability."""
    return OLDEST_CAPABILITY <= capability <= NEWEST_CAPABILITY


def survey(load: Callable[[str], Any] = ctypes.CDLL) -> Survey:
    """Return what the NVIDIA driver says of this machine, asked through libcuda.so.1, the library MXNet itself needs.

    CUDA_VISIBLE_DEVICES counts, as it does for MXNet. `load` opens a shared library and raises OSError where it cannot.
    """
    try:
        cuda = load("libcuda.so.1")
    except OSError as error:
        listed = _nvidia_smi()
        return Survey((), (0, 0), _no_driver(error, listed), hidden=bool(listed))
    try:
        _call(cuda, "cuInit", 0)
        version = ctypes.c_int()
        _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
        count = ctypes.c_int()
        _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(count.value))
    except _CudaError as error:
        fault = f"the NVIDIA driver offers no GPU ({error})"
        return Survey((), (0, 0), fault, hidden=error.code not in NOTHING_THERE)
    # 11020 stands for 11.2
    return Survey(gpus, (version.value // 1000, version.value % 1000 // 10), "")


def platform_fault() -> tuple[str, bool]:
    """Return what is wrong with MXNet 1.9.1 on this platform, "" if nothing, and whether there is a build at least."""
    # Linux, Darwin; x86_64, aarch64, arm64; glibc, "" (musl and others)
    system, machine, libc = platform.system(), platform.machine(), platform.libc_ver()[0]
    if (system, machine) == ("Linux", "x86_64") and libc == "glibc":
        return "", False
    if (system, machine, libc) == ("Linux", "aarch64", "glibc") or (system, machine) == ("Darwin", "x86_64"):
        return "not tried: MXNet 1.9.1 has a build for it, for CPUs", True
    where = f"{system} {machine}" + (" without glibc" if system == "Linux" and libc != "glibc" else "")
    return f"MXNet 1.9.1 has no build for {where}: use Linux on x86-64 with glibc", False


def choose(seen: Survey) -> tuple[str, str]:
    """Return the extra to install, "cpu" or "cu112", and the reason in one line."""
    if seen.fault:
        return "cpu", seen.fault
    if not seen.gpus:
        return "cpu", "the NVIDIA driver offers no GPU"
    names = ", ".join(map(str, seen.gpus))
    if seen.cuda < OLDEST_CUDA:
        return (
            "cpu",
            f"{names}: the driver is too old (CUDA {_dotted(seen.cuda)}): MXNet needs 450.80 or later (CUDA 11.0)",
        )
    usable = [gpu for gpu in seen.gpus if supported(gpu.capability)]
    if not usable:
        return "cpu", f"{names}: MXNet 1.9.1 has code for compute capability 5.0 to 8.9 only"
    return "cu112", ", ".join(map(str, usable))


def _call(cuda: Any, function: str, *arguments: Any) -> None:
    """Call `function` of libcuda and raise _CudaError unless it is there and succeeds."""
    try:
        code = getattr(cuda, function)(*arguments)
    except AttributeError as error:
        raise _CudaError(f"its libcuda.so.1 has no {function}") from error
    if code != 0:
        raise _CudaError(f"{function}: error {code}", code)


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    """Return the GPU at place `ordinal` of CUDA's order."""
    device = ctypes.c_int()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(256)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    capability = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]))


def _no_driver(error: OSError, listed: list[str]) -> str:
    """Return why libcuda.so.1 is missing: no driver at all, or one that this process is not given, of `listed` GPUs."""
    if not listed:
        return f"no NVIDIA driver ({error})"
    return (
        f"nvidia-smi lists {', '.join(listed)}, but the driver's library does not load ({error}): "
        "in a container, give it the driver capability 'compute'"
    )


def _nvidia_smi() -> list[str]:
    """Return the GPUs that nvidia-smi lists, as "name, capability, driver"; none where it is absent or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


if __name__ == "__main__":
    fault, built = platform_fault()
    if fault and not built:
        sys.exit(fault)
    extra, reason = choose(survey())
    print(extra)
    print(f"{extra}: {reason}", file=sys.stderr)
