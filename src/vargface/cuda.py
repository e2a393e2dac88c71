"""The CUDA libraries that mxnet-cu112 links against, as pip brings them: found, and loaded before it."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["installed_files", "missing", "preload"]

# What mxnet-cu112 links against, in an order in which each finds what it needs itself already loaded. The versions are
# part of it: NVIDIA's wheels for CUDA 12 put theirs into the same folders.
NVIDIA_LIBRARIES = (
    "cuda_runtime/lib/libcudart.so.11.0",
    "nvtx/lib/libnvToolsExt.so.1",
    "cuda_nvrtc/lib/libnvrtc-builtins.so.11.8",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "curand/lib/libcurand.so.10",
    "cufft/lib/libcufft.so.10",
    "cusolver/lib/libcusolver.so.11",
    "nccl/lib/libnccl.so.2",
    "cudnn/lib/libcudnn_ops_infer.so.8",
    "cudnn/lib/libcudnn_ops_train.so.8",
    "cudnn/lib/libcudnn_cnn_infer.so.8",
    "cudnn/lib/libcudnn_cnn_train.so.8",
    "cudnn/lib/libcudnn_adv_infer.so.8",
    "cudnn/lib/libcudnn_adv_train.so.8",
    "cudnn/lib/libcudnn.so.8",
)


def preload(load: Callable[..., Any] = ctypes.CDLL) -> list[Path]:
    """Load the CUDA libraries that pip installed, so that MXNet finds them in the process, and return their files.

    A library that pip did not bring in the version that MXNet wants is left to the system.
    Raises OSError where there is no NVIDIA driver or one fails.
    """
    try:
        load("libcuda.so.1")
    except OSError as error:
        raise OSError(f"no NVIDIA driver ({error})") from error
    files = [file for name, found in installed_files().items() for file in found if file.name == name]
    for file in files:
        load(str(file), mode=ctypes.RTLD_GLOBAL)
    return files


def missing() -> list[str]:
    """Return the names of NVIDIA_LIBRARIES that pip has not brought, in their order."""
    return [name for name, files in installed_files().items() if name not in {file.name for file in files}]


def installed_files() -> dict[str, list[Path]]:
    """Return name -> the files of that library that pip installed, of whatever version, for each of NVIDIA_LIBRARIES.

    They are in its order. A file with the very name is what mxnet-cu112 wants; any other is of another CUDA.
    """
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    return {
        Path(library).name: [
            file for folder in folders for file in sorted(folder.glob(f"{library.partition('.so.')[0]}.so.*"))
        ]
        for library in NVIDIA_LIBRARIES
    }
