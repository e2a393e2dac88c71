"""The one door to MXNet: `from vargface.runtime import mx`.

MXNet is imported at the first use of `mx`, after the settings and repairs that MXNet 1.9.1 needs; where it is missing
or cannot run, that is an InputError of one line. (An import by another way gets none of this, so ruff refuses it.)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from vargface import cuda, gpu, packages
from vargface.errors import InputError

if TYPE_CHECKING:
    import mxnet as mx

__all__ = [
    "SIDE_BY_SIDE",
    "THREADS",
    "check_numpy",
    "contexts",
    "cores",
    "flavours",
    "is_thread_count",
    "leave_threads_to_workers",
    "machine",
    "mx",
    "prepare_for_embedding",
    "prepare_for_training",
]

logger = logging.getLogger(__name__)


def cores() -> int:
    """Return the number of cores that this process may use: taskset or a container's share may leave fewer than exist.

    A share of 1.5 counts as 2. Raises InputError where joblib, which knows, does not load.
    """
    # not above: what needs no cores should not wait for it
    return packages.require("joblib", "the number of cores", extra="").cpu_count()


# batches that an Embedder has worked on side by side at most: each has the network's weights in memory once more
SIDE_BY_SIDE = 16
# the threads that the user has asked for, "" where it was left to us
THREADS = os.environ.get("OMP_NUM_THREADS", "")

# Set before MXNet is loaded, which reads them once; a value that the user has set wins.
ENVIRONMENT = {
    # "Subgraph backend MKLDNN is activated" is said at every bind and tells a user nothing
    "MXNET_SUBGRAPH_VERBOSE": "0",
    # AVX-512, without the kernels for it that want channels last: MKLDNN takes them for 1x1 and depthwise convolutions
    # and spends what they save, and more, on changing layouts around them (docs/inference.md)
    "DNNL_MAX_CPU_ISA": "AVX512_MIC",
}
# The same for a process that trains (`prepare_for_training`). With AVX-512, MKLDNN lays out some layers of the networks
# in blocks of 16 channels and some in 8, and what meets both (batch normalisation backward first of all) falls to its
# reference code, 30 times slower; with AVX2 all blocks are of 8.
TRAINING_ENVIRONMENT = {"DNNL_MAX_CPU_ISA": "AVX2"}

# names that numpy 1.24 took away and MXNet 1.9.1 still uses
NUMPY_NAMES = {"bool": bool, "int": int, "float": float, "complex": complex, "object": object, "str": str}

OPENMP = "GNU's OpenMP is the system's to bring: apt-get install libgomp1"


def __getattr__(name: str) -> Any:
    """Return MXNet for `mx`, imported now: this module itself can be imported, and asked why, where MXNet cannot."""
    if name == "mx":
        return _mxnet()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def prepare_for_training(context: str = "auto") -> None:
    """Set what a process that trains on the CPU needs; only before MXNet is imported. A value of yours wins.

    context: the recipe's; several CPU contexts share the cores, so each gets its part of the threads.
    """
    for name, value in TRAINING_ENVIRONMENT.items():
        # what a process that infers has set for itself comes down to the ones that it starts, and is not the user's
        if os.environ.get(name) in (None, ENVIRONMENT.get(name)):
            os.environ[name] = value
    shares = max(context.count("cpu("), 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // shares, 1)))


def prepare_for_embedding() -> None:
    """Set what a process that embeds many images on the CPU needs, before MXNet is imported. A value of yours wins.

    Every two cores work on a batch of their own (on two, faster than a batch for each, docs/inference.md), or more of
    them where there would be over SIDE_BY_SIDE batches.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(min(cores(), 2), -(-cores() // SIDE_BY_SIDE))))


def flavours() -> list[str]:
    """Return the names of the installed builds of MXNet, sorted: ["mxnet"], ["mxnet-cu112"], none, or several."""
    names = set()
    for found in importlib.metadata.distributions():
        with contextlib.suppress(UnicodeDecodeError):  # a package that is not ours to mend
            names.add(str(found.metadata["Name"]).lower())
    return sorted(name for name in names if re.fullmatch(r"mxnet(-(mkl|native|cu\d+(mkl)?))?", name))


def machine() -> dict[str, str]:
    """Return what a result depends on beside the recipe: processor, cores, threads, memory, devices, versions."""
    mxnet = __getattr__("mx")
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": str(cores()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "memory": f"{memory / 2**30:.1f} GiB",
        "GPUs": str(mxnet.context.num_gpus()),
        "MXNet": f"{mxnet.__version__} ({', '.join(flavours()) or 'built here'})",
        "Python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def contexts(spec: str = "auto") -> list[mx.Context]:
    """Return the devices that `spec` names: "auto", "cpu", "gpu", or a list such as "gpu(0),gpu(1)" or "cpu(0),cpu(1)".

    "gpu" is every GPU that MXNet can use; "auto" is the same, or one CPU context where there is none; where there are
    only GPUs that it cannot use, the reason is logged. Several CPU contexts are the same cores, each with a share of
    the batch. Raises InputError on any other spec, and on a GPU that is not there.
    """
    mxnet = _mxnet()
    if spec == "cpu":
        return [mxnet.cpu()]
    if spec in ("auto", "gpu"):
        ordinals = _usable_gpus(mxnet)
        if spec == "gpu" and not ordinals:
            why = _why_no_gpu(mxnet, gpu.survey())
            raise InputError(f"context 'gpu': no GPU that MXNet can use ({why}) - use 'cpu' or 'auto'")
        if not ordinals:
            _tell_why_cpu(mxnet)
        return [mxnet.gpu(ordinal) for ordinal in ordinals] or [mxnet.cpu()]
    names = spec.replace(" ", "").split(",")
    devices = [re.fullmatch(r"(cpu|gpu)\((\d+)\)", name) for name in names]
    kinds = {device[1] if device else "" for device in devices}
    if kinds not in ({"cpu"}, {"gpu"}) or len(set(names)) < len(names):
        allowed = "'auto', 'cpu', 'gpu' or a list of one kind, each device once, such as 'gpu(0),gpu(1)'"
        raise InputError(f"context {spec!r}: give {allowed}")
    ordinals = [int(device[2]) for device in devices if device]
    if kinds == {"cpu"}:
        return [mxnet.cpu(ordinal) for ordinal in ordinals]
    usable = _usable_gpus(mxnet)
    missing = [ordinal for ordinal in ordinals if ordinal not in usable]
    if missing:
        there = ", ".join(f"gpu({ordinal})" for ordinal in usable) or "none"
        raise InputError(f"context {spec!r}: MXNet cannot use gpu({missing[0]}) - usable GPUs: {there}")
    return [mxnet.gpu(ordinal) for ordinal in ordinals]


def _usable_gpus(mxnet: ModuleType) -> list[int]:
    """Return the ordinals of the GPUs that this build of MXNet sees and has code for."""
    try:
        count = mxnet.context.num_gpus()
    except mxnet.MXNetError:  # a CUDA build on a machine without a GPU
        return []
    if count == 0:
        return []
    return [ordinal for ordinal, found in enumerate(gpu.survey().gpus[:count]) if gpu.supported(found.capability)]


def _why_no_gpu(mxnet: ModuleType, seen: gpu.Survey) -> str:
    """Return the reason why there is no usable GPU."""
    extra, reason = gpu.choose(seen)
    there = reason if extra == "cpu" else f"the driver offers {reason}"
    if not mxnet.runtime.Features().is_enabled("CUDA"):
        return f"this is its CPU build; {there}"
    return there if extra == "cpu" else f"{there}, MXNet sees none"


@functools.lru_cache(maxsize=None)
def _tell_why_cpu(mxnet: ModuleType) -> None:
    """Log, once in a process, why it works on the CPU where there is a GPU; nothing where there is none."""
    seen = gpu.survey()
    if seen.gpus or seen.hidden:
        logger.warning("on the CPU, no GPU that MXNet can use (%s)", _why_no_gpu(mxnet, seen))


@functools.lru_cache(maxsize=None)
def _mxnet() -> ModuleType:
    """Return the module `mxnet`, imported after the settings and repairs it needs.

    Raises InputError where it is not installed, installed twice, or does not load, and where OMP_NUM_THREADS is no
    number.
    """
    _check_threads(os.environ)
    installed = flavours()
    _check_install(installed)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "OMP_NUM_THREADS" not in os.environ:
        # without it MXNet's operators run at one thread's speed; with more threads than cores they wait for each other
        os.environ["OMP_NUM_THREADS"] = str(cores())
    _restore_numpy_names()
    leave_threads_to_workers()
    try:
        if "mxnet-cu112" in installed:
            cuda.preload()
        with warnings.catch_warnings():  # what Python and numpy deprecate in MXNet 1.9.1 is nothing a user can mend
            warnings.simplefilter("ignore")
            mxnet = importlib.import_module("mxnet")
        if not str(getattr(mxnet, "__version__", "none")).startswith("1."):
            raise ImportError(f"not version 1.9.1, but {getattr(mxnet, '__version__', 'an empty folder')}")
        return mxnet
    except (OSError, RuntimeError, ImportError, AttributeError) as error:
        what = installed[0] if installed else "mxnet"
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{what} is installed but does not load: {why} - {_remedy(what, error)}") from error


def _remedy(flavour: str, error: Exception) -> str:
    """Return what to do where the build `flavour` of MXNet is installed and its import raised `error`."""
    if "libgomp.so.1" in str(error):
        return OPENMP
    if flavour.startswith("mxnet-cu") and "libcuda.so.1" in str(error):
        return f"for the CPU build: {packages.instead([flavour], 'cpu')}"
    if flavour == "mxnet-cu112" and isinstance(error, OSError):
        fix = packages.install("cu112") if cuda.missing() else packages.anew(*packages.requirements("cu112"))
        return f"for its CUDA libraries: {fix}"
    return packages.anew(f"{flavour}==1.9.1")


def _check_threads(environment: MutableMapping[str, str]) -> None:
    """Raise InputError where OMP_NUM_THREADS is not what MXNet takes: it would end the process. Empty is as unset."""
    asked = environment.get("OMP_NUM_THREADS")
    if asked == "":
        del environment["OMP_NUM_THREADS"]
    elif asked is not None and not is_thread_count(asked):
        raise InputError(f"OMP_NUM_THREADS={asked} is no number of threads - give a whole number, or unset it")


def is_thread_count(text: str) -> bool:
    """Return whether `text` is a whole number from 1 on, as MXNet reads OMP_NUM_THREADS (OpenMP takes lists, too)."""
    return re.fullmatch("0*[1-9][0-9]{0,8}", text, re.ASCII) is not None


def _check_install(installed: list[str]) -> None:
    """Raise InputError where the installed packages cannot work together."""
    if not installed and importlib.util.find_spec("mxnet") is None:
        raise InputError(f"MXNet is not installed - {packages.install('cpu')} (docs/gpu.md: for an NVIDIA GPU)")
    if len(installed) > 1:
        fix = packages.instead(installed, "cu112" if "mxnet-cu112" in installed else "cpu")
        raise InputError(f"{' and '.join(installed)} are installed side by side but own the same folder - {fix}")
    check_numpy()
    if importlib.util.find_spec("distutils") is None:  # gone from Python 3.12 on, where setuptools brings its own
        version = "{}.{}".format(*sys.version_info)
        raise InputError(f"Python {version} has no distutils, MXNet 1.9.1 needs it - use Python 3.8 to 3.11")


def check_numpy() -> None:
    """Raise InputError where numpy is of a version at which MXNet, or OpenCV built for an older one, does not load."""
    if int(np.__version__.partition(".")[0]) >= 2:
        raise InputError(f"numpy {np.__version__} is installed, MXNet 1.9.1 needs an older one - pip install 'numpy<2'")


def _restore_numpy_names() -> None:
    """Give numpy the names of Python's types back where it has lost them (1.24) or warns of them (1.20 to 1.23)."""
    for name, kind in NUMPY_NAMES.items():
        if name not in vars(np):
            setattr(np, name, kind)


def leave_threads_to_workers() -> None:
    """Keep this thread from starting OpenMP threads of its own beside those of MXNet's workers, which do all the work.

    It would for a large copy, once, at loading. From then on GNU's OpenMP counts more threads than cores and lets them
    sleep between two operators instead of waiting: with two threads a face then takes twice as long. OpenMP keeps a
    number for each thread, so every one that makes or runs a network calls this.
    """
    _openmp_threads()(1)


@functools.lru_cache(maxsize=None)
def _openmp_threads() -> Callable[[int], Any]:
    """Return what sets the OpenMP threads of the thread that calls it."""
    try:
        return ctypes.CDLL("libgomp.so.1").omp_set_num_threads
    except (OSError, AttributeError):  # a build of MXNet with another OpenMP
        return lambda number: None
