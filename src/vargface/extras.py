"""Packages that are not always there: those of the extra `export`."""

from __future__ import annotations

import importlib
from types import ModuleType

from vargface.errors import InputError

__all__ = ["require"]

INSTALL = "pip install -c constraints.txt '.[export]'"


def require(package: str, what: str) -> ModuleType:
    """Return the module `package`, which `what` needs. Raises InputError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{what} needs {package} ({error}) - {INSTALL}") from error
