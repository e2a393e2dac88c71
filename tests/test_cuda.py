"""The CUDA libraries that pip brings: which are loaded before MXNet, in which order; no GPU is needed for it."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from vargface import cuda


class Loader:
    """Stands for ctypes.CDLL: remembers what it was asked for, and fails on `broken`."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.asked = broken, []

    def __call__(self, name: str, mode: int = ctypes.DEFAULT_MODE) -> None:
        self.asked.append((Path(name).name, mode))
        if Path(name).name == self.broken:
            raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages with the files that the pinned NVIDIA wheels hold (as listed from them), written out of order."""
    files = (
        "cudnn/libcudnn.so.8 cudnn/libcudnn_adv_infer.so.8 cudnn/libcudnn_adv_train.so.8 cudnn/libcudnn_cnn_infer.so.8 "
        "cudnn/libcudnn_cnn_train.so.8 cudnn/libcudnn_ops_infer.so.8 cudnn/libcudnn_ops_train.so.8 nccl/libnccl.so.2 "
        "cusolver/libcusolver.so.11 cusolver/libcusolverMg.so.11 cufft/libcufft.so.10 cufft/libcufftw.so.10 "
        "curand/libcurand.so.10 cublas/libcublas.so.11 cublas/libcublasLt.so.11 cublas/libnvblas.so.11 "
        "cuda_nvrtc/libnvrtc.so.11.2 cuda_nvrtc/libnvrtc-builtins.so.11.8 nvtx/libnvToolsExt.so.1 "
        "cuda_runtime/libcudart.so.11.0 cuda_runtime/libOpenCL.so.1"
    )
    lay(tmp_path, files)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path / "nvidia"


def test_cuda_libraries_load_after_the_driver_in_an_order_that_finds_each_what_it_needs(nvidia):
    load = Loader()
    files = cuda.preload(load)
    assert [name for name, _ in load.asked] == [
        "libcuda.so.1",
        "libcudart.so.11.0",
        "libnvToolsExt.so.1",
        "libnvrtc-builtins.so.11.8",
        "libnvrtc.so.11.2",
        "libcublasLt.so.11",
        "libcublas.so.11",
        "libcurand.so.10",
        "libcufft.so.10",
        "libcusolver.so.11",
        "libnccl.so.2",
        "libcudnn_ops_infer.so.8",
        "libcudnn_ops_train.so.8",
        "libcudnn_cnn_infer.so.8",
        "libcudnn_cnn_train.so.8",
        "libcudnn_adv_infer.so.8",
        "libcudnn_adv_train.so.8",
        "libcudnn.so.8",
    ]
    assert {mode for _, mode in load.asked[1:]} == {ctypes.RTLD_GLOBAL}
    assert [file.name for file in files] == [name for name, _ in load.asked[1:]]
    assert all(nvidia in file.parents for file in files)


# what the wheels for CUDA 12 put into the same folders, by other names and by the same
CUDA_12 = (
    "cudnn/libcudnn.so.9 cudnn/libcudnn_ops.so.9 cufft/libcufft.so.11 cublas/libcublas.so.12 cublas/libcublasLt.so.12 "
    "cuda_nvrtc/libnvrtc.so.12 cuda_nvrtc/libnvrtc-builtins.so.12.4 cuda_runtime/libcudart.so.12 "
    "nccl/libnccl.so.2 cusolver/libcusolver.so.11 curand/libcurand.so.10 nvtx/libnvToolsExt.so.1"
)


def lay(site_packages: Path, files: str) -> None:
    """Make empty files, "package/library ...", where NVIDIA's wheels have them."""
    for file in files.split():
        package, library = file.split("/")
        folder = site_packages / "nvidia" / package / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / library).touch()


def test_of_two_cudas_in_the_same_folders_mxnets_alone_is_loaded(nvidia):
    alone = cuda.preload(Loader())
    lay(nvidia.parent, CUDA_12)
    assert cuda.preload(Loader()) == alone
    assert [file.name for file in cuda.installed_files()["libcudart.so.11.0"]] == [
        "libcudart.so.11.0",
        "libcudart.so.12",
    ]


def test_of_another_cuda_nothing_is_loaded_but_what_has_the_same_name(tmp_path, monkeypatch):
    lay(tmp_path, CUDA_12)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    load = Loader()
    cuda.preload(load)
    same = ["libnvToolsExt.so.1", "libcurand.so.10", "libcusolver.so.11", "libnccl.so.2"]
    assert [name for name, _ in load.asked] == ["libcuda.so.1", *same]


def test_without_a_driver_no_cuda_library_is_touched(nvidia):
    load = Loader(broken="libcuda.so.1")
    with pytest.raises(OSError, match="no NVIDIA driver"):
        cuda.preload(load)
    assert len(load.asked) == 1


def test_a_cuda_library_that_fails_is_named(nvidia):
    with pytest.raises(OSError, match="libcufft.so.10"):
        cuda.preload(Loader(broken="libcufft.so.10"))


def test_cuda_libraries_that_pip_did_not_bring_are_left_to_the_system(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda.preload(Loader()) == []
