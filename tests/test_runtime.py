"""MXNet's one door: what it sets and mends before the import, and what it says where there is nothing to import."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stub_driver import compile_driver

from vargface import runtime
from vargface.errors import InputError
from vargface.gpu import Gpu, Survey

# prints MXNet's environment; any warning left to numpy's old names or MXNet's own code is an error under -W error
HONEST = """
import os, warnings
import numpy as np
__version__ = "1.9.1"
assert (np.bool, np.int, np.float, np.object) == (bool, int, float, object)
warnings.warn("something of 2019", DeprecationWarning)
print(os.environ["OMP_NUM_THREADS"])
"""


class Site:
    """A folder that stands for site-packages: our package, numpy, joblib, and whatever a test puts in."""

    def __init__(self, folder: Path, numpy: bool = True) -> None:
        self.folder = folder
        (folder / "vargface").symlink_to(Path(runtime.__file__).parent)
        (folder / "vargface-0.1.0.dist-info").symlink_to(importlib.metadata.distribution("vargface")._path)
        packages = Path(np.__file__).parents[1]
        for name in ("joblib", "cloudpickle", *(("numpy", "numpy.libs") if numpy else ())):
            if (packages / name).exists():
                (folder / name).symlink_to(packages / name)

    def module(self, name: str, text: str) -> None:
        (self.folder / f"{name}.py").write_text(text)

    def distribution(self, name: str) -> None:
        info = self.folder / f"{name.replace('-', '_')}-1.9.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.9.1\n")

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `code` in a Python that has this folder and no other site-packages."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MXNET_"))}
        return subprocess.run(
            [sys.executable, "-S", "-W", "error", "-c", code],
            env={**inherited, "PYTHONPATH": str(self.folder), **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    def error(self, before: str = "", **environment: str) -> str:
        """Return the message of the InputError that asking for `mx` raises; it is one line."""
        code = (
            f"from vargface.errors import InputError\n{before}\nimport vargface.runtime\ntry:\n"
            "    from vargface.runtime import mx\nexcept InputError as error:\n    print(error)\n"
        )
        done = self.run(code, **environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        return done.stdout.strip()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_missing_mxnet_names_both_extras(site):
    assert site.error() == "MXNet is not installed - pip install mxnet==1.9.1 (docs/gpu.md: for an NVIDIA GPU)"


def test_two_builds_side_by_side_are_refused(site):
    site.module("mxnet", "")
    site.distribution("mxnet")
    site.distribution("mxnet-cu112")
    message = site.error()
    assert message.startswith("mxnet and mxnet-cu112 are installed side by side")
    assert "pip uninstall -y mxnet mxnet-cu112" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise OSError('libfoo.so.3: cannot open shared object file')", "libfoo.so.3: cannot open shared object file"),
        ("raise RuntimeError('Cannot find the MXNet library.\\nList of candidates:\\n/a\\n/b')", "the MXNet library."),
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
    ],
)
def test_an_install_that_does_not_load_gives_its_reason_and_a_fix(site, text, reason):
    site.module("mxnet", text)
    site.distribution("mxnet")
    message = site.error()
    assert message.startswith("mxnet is installed but does not load: ")
    assert f"{reason} - pip install --force-reinstall --no-deps mxnet==1.9.1" in message


@pytest.mark.parametrize(("text", "found"), [("", "an empty folder"), ("__version__ = '2.0.0'", "2.0.0")])
def test_what_is_no_mxnet_1_is_told_apart(site, text, found):
    """What is left of it when one of two builds in the same folder was uninstalled is still imported."""
    site.module("mxnet", text)
    site.distribution("mxnet")
    message = site.error()
    assert message.startswith(f"mxnet is installed but does not load: not version 1.9.1, but {found} - pip install")


@pytest.mark.parametrize("threads", ["abc", "2,2", "0", "-1", "²", "99999999999"])
def test_threads_that_would_end_the_process_are_refused(site, threads):
    site.module("mxnet", HONEST)
    site.distribution("mxnet")
    expected = f"OMP_NUM_THREADS={threads} is no number of threads - give a whole number, or unset it"
    assert site.error(OMP_NUM_THREADS=threads) == expected


def test_no_threads_given_are_those_of_the_cores(site):
    site.module("mxnet", HONEST)
    site.distribution("mxnet")
    assert site.run("from vargface.runtime import mx", OMP_NUM_THREADS="").stdout == f"{runtime.cores()}\n"


def test_a_package_whose_metadata_is_damaged_is_passed_over(site):
    site.distribution("mxnet")
    site.distribution("other")
    (site.folder / "other-1.9.1.dist-info" / "METADATA").write_bytes(b"Name: \xff")
    done = site.run("from vargface.runtime import flavours; print(flavours())")
    assert (done.stdout, done.stderr) == ("['mxnet']\n", "")


def test_cuda_build_without_a_driver_points_to_the_cpu_build(site):
    site.module("mxnet", "")
    site.distribution("mxnet-cu112")
    # no library: it hides a driver that this machine may have
    (site.folder / "libcuda.so.1").write_text("")
    message = site.error(LD_LIBRARY_PATH=str(site.folder))
    assert "mxnet-cu112 is installed but does not load: no NVIDIA driver (" in message
    assert message.endswith("pip uninstall -y mxnet-cu112 && pip install mxnet==1.9.1")


def test_openmp_that_the_system_lacks_is_the_systems_to_bring(site):
    site.module("mxnet", "raise OSError('libgomp.so.1: cannot open shared object file: No such file or directory')")
    site.distribution("mxnet")
    assert site.error().endswith(" - GNU's OpenMP is the system's to bring: apt-get install libgomp1")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a stub driver with")
@pytest.mark.parametrize(
    ("text", "brought", "fix"),
    [
        (
            "raise OSError('libcudart.so.11.0: no such file')",
            False,
            "for its CUDA libraries: pip install mxnet-cu112==1.9.1 ",
        ),
        (
            "raise OSError('libcudart.so.11.0: bad')",
            True,
            "for its CUDA libraries: pip install --force-reinstall --no-deps mxnet-cu112==1.9.1 ",
        ),
        ("", False, "pip install --force-reinstall --no-deps mxnet-cu112==1.9.1"),
    ],
    ids=["no CUDA libraries", "all of them", "an empty folder"],
)
def test_cuda_build_with_a_driver_points_to_its_libraries_or_to_itself(site, text, brought, fix):
    compile_driver(site.folder, (8, 6))
    site.module("mxnet", text)
    site.distribution("mxnet-cu112")
    before = "import vargface.runtime; vargface.cuda.missing = list" if brought else ""
    message = site.error(before, LD_LIBRARY_PATH=str(site.folder))
    assert f" - {fix}" in message
    assert ("nvidia-cudnn-cu11==8.9.6.50" in message) == ("CUDA libraries" in fix)


def test_numpy_2_is_named(tmp_path):
    site = Site(tmp_path, numpy=False)
    site.module("numpy", "__version__ = '2.1.0'")
    site.module("mxnet", "")
    site.distribution("mxnet")
    assert site.error() == "numpy 2.1.0 is installed, MXNet 1.9.1 needs an older one - pip install 'numpy<2'"


def test_missing_distutils_is_explained(site):
    site.module("mxnet", "")
    site.distribution("mxnet")
    message = site.error(before="import sys; sys.modules['distutils'] = None")
    assert "has no distutils" in message
    assert "Python 3.8 to 3.11" in message


def test_threads_are_the_cores_of_this_process_and_numpy_names_are_back(site):
    site.module("mxnet", HONEST)
    site.distribution("mxnet")
    done = site.run("from vargface.runtime import mx")
    assert done.stderr == ""
    assert done.stdout == f"{len(os.sched_getaffinity(0))}\n"


def test_one_core_given_is_one_thread(site):
    site.module("mxnet", HONEST)
    site.distribution("mxnet")
    core = min(os.sched_getaffinity(0))
    done = site.run(f"import os; os.sched_setaffinity(0, {{{core}}}); from vargface.runtime import mx")
    assert done.stdout == "1\n"


def test_the_users_own_setting_wins(site):
    site.module("mxnet", HONEST)
    site.distribution("mxnet")
    assert site.run("from vargface.runtime import mx", OMP_NUM_THREADS="7").stdout == "7\n"


def test_the_thread_that_calls_starts_no_openmp_threads_of_its_own(site):
    """Two pools of threads made GNU's OpenMP put both to sleep: a face took twice as long on two threads."""
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("no GNU OpenMP here")
    site.module("mxnet", HONEST)
    site.distribution("mxnet")
    code = "import ctypes; from vargface.runtime import mx; print(ctypes.CDLL('libgomp.so.1').omp_get_max_threads())"
    assert site.run(code, OMP_NUM_THREADS="2").stdout.splitlines() == ["2", "1"]


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ({}, "AVX2"),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, "AVX512_CORE"),
        (runtime.ENVIRONMENT, "AVX2"),  # of a process that infers, which this one was started by
    ],
)
def test_training_sets_mkldnn_before_mxnet_is_loaded(site, monkeypatch, own, seen):
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    site.module("mxnet", "import os; __version__ = '1.9.1'; print(os.environ.get('DNNL_MAX_CPU_ISA'))")
    site.distribution("mxnet")
    use = "from vargface.runtime import mx"
    assert (
        site.run(f"import vargface.runtime as runtime; runtime.prepare_for_training(); {use}", **own).stdout
        == f"{seen}\n"
    )
    assert site.run(use).stdout == "AVX512_MIC\n"  # inference keeps AVX-512


@pytest.mark.parametrize(
    "context, cores, threads",
    [
        ("auto", 4, "4"),
        ("cpu", 4, "4"),
        ("cpu(0),cpu(1)", 4, "2"),
        ("cpu(0),cpu(1),cpu(2)", 2, "1"),
        ("gpu(0)", 2, "2"),
    ],
)
def test_cpu_contexts_share_the_cores(monkeypatch, context, cores, threads):
    monkeypatch.setattr(runtime, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")  # taken back after the test, which sets it otherwise
    runtime.prepare_for_training(context)
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    runtime.prepare_for_training(context)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_importing_the_module_does_not_import_mxnet(site):
    site.module("mxnet", "raise SystemExit('imported')")
    assert site.run("import vargface.runtime").returncode == 0
    assert "imported" in site.run("from vargface.runtime import mx").stderr


def test_mx_is_mxnet_and_works():
    assert runtime.mx is sys.modules["mxnet"]
    assert (runtime.mx.nd.ones((2, 3)) * 2).asnumpy().sum() == 12
    assert runtime.flavours() in (["mxnet"], ["mxnet-cu112"])
    with pytest.raises(AttributeError, match="mxx"):
        _ = runtime.mxx


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.mx.context, "num_gpus", lambda: 0)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu("Ampere", (8, 6)), Gpu("Hopper", (9, 0)), Gpu("Turing", (7, 5)))
    monkeypatch.setattr(runtime.gpu, "survey", lambda: Survey(gpus, (12, 2), ""))
    monkeypatch.setattr(runtime.mx.context, "num_gpus", lambda: len(gpus))


@pytest.mark.parametrize(
    ("spec", "devices"),
    [("auto", "cpu(0)"), ("cpu", "cpu(0)"), ("cpu(0),cpu(1)", "cpu(0) cpu(1)"), ("cpu(3), cpu(1)", "cpu(3) cpu(1)")],
)
def test_contexts_without_a_gpu(no_gpu, spec, devices):
    assert [str(context) for context in runtime.contexts(spec)] == devices.split()


@pytest.mark.parametrize(
    ("spec", "devices"),
    [("auto", "gpu(0) gpu(2)"), ("gpu", "gpu(0) gpu(2)"), ("gpu(2)", "gpu(2)"), ("cpu", "cpu(0)")],
)
def test_contexts_take_the_gpus_that_mxnet_has_code_for(three_gpus, spec, devices):
    assert [str(context) for context in runtime.contexts(spec)] == devices.split()


def test_a_gpu_without_code_is_refused_before_the_first_kernel(three_gpus):
    with pytest.raises(InputError, match=r"cannot use gpu\(1\) - usable GPUs: gpu\(0\), gpu\(2\)"):
        runtime.contexts("gpu(0),gpu(1)")


@pytest.mark.parametrize("spec", ["gpu", "gpu(0)", "gpu(0),gpu(1)"])
def test_a_gpu_that_is_not_there_is_refused(no_gpu, spec):
    with pytest.raises(InputError, match="GPU"):
        runtime.contexts(spec)


def test_cuda_error_of_mxnet_counts_as_no_gpu(monkeypatch):
    def fail():
        raise runtime.mx.MXNetError("no CUDA-capable device is detected")

    monkeypatch.setattr(runtime.mx.context, "num_gpus", fail)
    assert runtime.contexts("auto") == [runtime.mx.cpu(0)]


HOPPER = Gpu("H100", (9, 0))
TURING = Gpu("T4", (7, 5))


@pytest.mark.parametrize(
    ("seen", "cuda_build", "why"),
    [
        (
            Survey((HOPPER,), (12, 2), ""),
            True,
            "H100 (9.0): MXNet 1.9.1 has code for compute capability 5.0 to 8.9 only",
        ),
        (Survey((TURING,), (12, 2), ""), True, "the driver offers T4 (7.5), MXNet sees none"),
        (Survey((TURING,), (12, 2), ""), False, "this is its CPU build; the driver offers T4 (7.5)"),
        (Survey((), (0, 0), "cuInit: error 803", hidden=True), True, "cuInit: error 803"),
        (Survey((), (0, 0), "no NVIDIA driver"), True, None),
        (Survey((), (0, 0), "no NVIDIA driver"), False, None),
    ],
)
def test_why_auto_is_the_cpu_is_told_once_where_there_is_a_gpu(no_gpu, monkeypatch, caplog, seen, cuda_build, why):
    monkeypatch.setattr(runtime.gpu, "survey", lambda: seen)
    monkeypatch.setattr(runtime.mx.runtime.Features, "is_enabled", lambda self, name: cuda_build)
    runtime._tell_why_cpu.cache_clear()
    with caplog.at_level(logging.INFO, logger=runtime.__name__):
        assert runtime.contexts("cpu") == [runtime.mx.cpu()]
        assert caplog.messages == []
        assert runtime.contexts("auto") == runtime.contexts("auto") == [runtime.mx.cpu()]
    assert caplog.messages == ([] if why is None else [f"on the CPU, no GPU that MXNet can use ({why})"])
    runtime._tell_why_cpu.cache_clear()


@pytest.mark.parametrize(
    "spec",
    ["", "cuda", "cpu:2", "cpu(0", "cpu(-1)", "gpu0", "cpu(0),", "cpu(0),gpu(0)", "cpu(0),cpu(0)", "CPU", "cpu,cpu"],
)
def test_a_bad_spec_is_quoted_with_what_is_allowed(spec):
    with pytest.raises(InputError) as error:
        runtime.contexts(spec)
    assert repr(spec) in str(error.value)
    assert "'gpu(0),gpu(1)'" in str(error.value)
