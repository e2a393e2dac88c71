"""The packages that this one stands on: whether they load, and what to type where one does not.

Standard library alone: it speaks where nothing else loads.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from vargface.errors import InputError

__all__ = ["OPTIONAL", "REQUIRED", "Fault", "anew", "broken", "install", "instead", "require", "requirements"]

# module -> the package that brings it (setup.py); numpy first, which others are built for
REQUIRED = {
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "joblib": "joblib",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "tensorboardX": "tensorboardX",
    "easydict": "easydict",
    "tqdm": "tqdm",
}
# the same for the extra `export`
OPTIONAL = {
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "google.protobuf": "protobuf",
    "sympy": "sympy",
    **({"ml_dtypes": "ml_dtypes"} if sys.version_info >= (3, 9) else {}),
}
# OpenCV's other wheels own the same folder
WITH_DISPLAY = "the build without windows needs no libGL: pip uninstall -y opencv-python opencv-contrib-python && "


class Fault(NamedTuple):
    """A module that does not load, why, and what to do."""

    name: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name} does not load: {self.why} - {self.fix}"


def broken(modules: Iterable[str] = tuple(REQUIRED)) -> list[Fault]:
    """Import each of `modules` and return those that do not load."""
    found = []
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # of a package built for another numpy it may be any
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            package = {**REQUIRED, **OPTIONAL}[name]
            asked = (*requirements(), *requirements("export"))
            fix = anew(next((line for line in asked if _name(line) == _name(package)), package))
            found.append(Fault(name, why, WITH_DISPLAY + fix if "libGL" in why else fix))
            if name == "numpy":  # the others need it
                break
    return found


def require(package: str, what: str, extra: str = "export") -> ModuleType:
    """Return the module `package`, which `what` needs; `extra` brings it, "" is always installed.

    Raises InputError where it does not load.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{what} needs {package} ({error}) - {install(extra)}") from error


def install(extra: str) -> str:
    """Return the command that installs an extra of setup.py here: `make` in its own .venv, else `pip`."""
    if made_by_make():
        return "make clean install" if extra in ("", "export") else f"make install EXTRA={extra}"
    return f"pip install {' '.join(map(shlex.quote, requirements(extra)))}"


def instead(installed: Iterable[str], extra: str) -> str:
    """Return the command that takes the packages `installed` out and installs `extra` in their place."""
    command = install(extra)
    return command if made_by_make() else f"pip uninstall -y {' '.join(installed)} && {command}"


def anew(*wanted: str) -> str:
    """Return the command that installs these requirements, which are damaged, once more."""
    if made_by_make():
        return "make clean install"
    return f"pip install --force-reinstall --no-deps {' '.join(map(shlex.quote, wanted))}"


@functools.lru_cache(maxsize=None)
def requirements(extra: str = "") -> tuple[str, ...]:
    """Return what setup.py asks for by `extra`, or always, as pip takes it."""
    try:
        lines = importlib.metadata.requires("vargface") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        return (f"{_checkout()}[{extra}]" if extra else str(_checkout()),)
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        asked = re.search(r"extra == ['\"](.+?)['\"]", marker)
        if (asked[1] if asked else "") == extra:
            found.append(requirement.strip())
    return tuple(found)


def made_by_make() -> bool:
    """Whether this is the .venv that the Makefile of our checkout builds."""
    return Path(sys.prefix) == _checkout() / ".venv" and (_checkout() / "Makefile").is_file()


def _checkout() -> Path:
    """Return the folder that holds src/vargface, where this is a checkout."""
    return Path(__file__).absolute().parents[2]


def _name(requirement: str) -> str:
    """Return the package's name in `requirement`, as names are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip())[0]).lower()
