"""A driver in C, of one GPU, that does nothing: to be compiled in the place of NVIDIA's libcuda."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

STUB = r"""
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stub GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? MAJOR : MINOR; return 0; }
"""


def compile_driver(folder: Path, capability: tuple[int, int], more: Sequence[str] = ()) -> None:
    """Write libcuda.so.1 into `folder`, with `more` functions that return an error."""
    source = folder / "stub.c"
    others = [name for name in more if f" {name}(" not in STUB]
    source.write_text(STUB + "".join(f"int {name}(void) {{ return 100; }}\n" for name in others))
    defines = [f"-D{name}={value}" for name, value in zip(("MAJOR", "MINOR"), capability)]
    command = ["cc", "-shared", "-fPIC", *defines, "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True)
