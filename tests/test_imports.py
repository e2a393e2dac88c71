"""The house's rules on who may import whom (DESIGN.md): data flows one way."""

from __future__ import annotations

import ast
import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# folder -> package, as setup.py lays them out
PACKAGES = {
    "src/vargface": "vargface",
    "symbols": "vargface.symbols",
    "eval": "vargface.eval",
    "recipes": "vargface.recipes",
}


def modules() -> dict[str, Path]:
    """Name -> file of every module of ours."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [*path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


@functools.lru_cache(maxsize=None)
def imports(name: str) -> frozenset[str]:
    """Everything that module `name` imports, wherever in the file; a name from a package of ours in full."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                found.add(full if full in MODULES else source)
    return frozenset(found)


def ours(name: str) -> set[str]:
    return {found for found in imports(name) if found.split(".")[0] == "vargface"}


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def of(package: str) -> list[str]:
    found = sorted(name for name in MODULES if inside(name, package))
    assert found, f"no module in {package}: the rule below would hold of nothing"
    return found


def test_the_parser_sees_what_is_imported():
    assert "vargface.symbols.layers" in imports("vargface.symbols.vargfacenet")
    assert "vargface.training.fit" in imports("vargface.commands.train")  # inside a function
    assert {"numpy", "vargface.errors"} <= imports("vargface.eval.verification")
    assert "vargface.runtime" in imports("vargface.commands.train")  # `from vargface import runtime`


@pytest.mark.parametrize("name", of("vargface.symbols"))
def test_symbols_import_nothing_of_ours_but_mxnets_door(name):
    assert not {found for found in ours(name) if not inside(found, "vargface.symbols", "vargface.runtime")}


@pytest.mark.parametrize("name", of("vargface.eval"))
def test_eval_imports_numpy_the_errors_the_files_and_what_draws_alone(name):
    assert not {
        found for found in ours(name) if not inside(found, "vargface.eval", "vargface.errors", "vargface.files")
    }
    names = {found.split(".")[0] for found in imports(name) - ours(name)}
    outside = {name for name in names if "site-packages" in str(importlib.util.find_spec(name).origin)}
    draws = name in ("vargface.eval.curves", "vargface.eval.pictures")
    assert outside <= ({"numpy", "matplotlib"} if draws else {"numpy"})


@pytest.mark.parametrize("name", of("vargface.recipes"))
def test_recipes_are_data(name):
    assert {found for found in imports(name) if not inside(found, "vargface.recipes")} <= {"easydict", "__future__"}


@pytest.mark.parametrize("name", of("vargface.training"))
def test_training_knows_nothing_of_what_is_done_with_its_checkpoints(name):
    assert not {found for found in ours(name) if inside(found, "vargface.deploy", "vargface.cli", "vargface.demo")}


@pytest.mark.parametrize("name", of("vargface.teachers"))
def test_teachers_know_nothing_of_training(name):
    above = ("vargface.training", "vargface.recipe", "vargface.recipes", "vargface.deploy", "vargface.commands")
    assert not {found for found in ours(name) if inside(found, *above)}


@pytest.mark.parametrize("name", of("vargface.data"))
def test_data_knows_nothing_of_training(name):
    above = ("vargface.training", "vargface.symbols", "vargface.recipes", "vargface.deploy", "vargface.inference")
    assert not {found for found in ours(name) if inside(found, *above)}


@pytest.mark.parametrize("name", of("vargface.deploy"))
def test_deploy_knows_nothing_of_training(name):
    above = ("vargface.training", "vargface.symbols", "vargface.recipes", "vargface.recipe", "vargface.demo")
    assert not {found for found in ours(name) if inside(found, *above)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_the_command_line(name):
    allowed = {"vargface.__main__", "vargface.member"}
    assert name in allowed or "vargface.cli" not in imports(name)
    if not inside(name, "vargface.cli", "vargface.commands"):
        assert not {found for found in ours(name) if inside(found, "vargface.commands")}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"vargface.runtime"}))
def test_mxnet_comes_through_its_door(name):
    assert not {found for found in imports(name) if inside(found, "mxnet")}


def test_no_module_imports_itself_around_a_corner():
    state: dict[str, str] = {}

    def visit(name: str, path: list[str]) -> None:
        assert state.get(name) != "open", f"cycle: {' -> '.join([*path, name])}"
        if name in state:
            return
        state[name] = "open"
        for found in sorted(ours(name) & set(MODULES)):
            if found != name and not inside(name, found):  # a package's own __init__ may name its modules
                visit(found, [*path, name])
        state[name] = "done"

    for name in sorted(MODULES):
        visit(name, [])


def test_no_package_imports_itself_around_a_corner():
    """Nor do the rooms: each package under vargface, and each module beside them, with all that is in it."""
    room = {name: ".".join(name.split(".")[:2]) for name in MODULES}
    needs = {name: set() for name in room.values()}
    for name in MODULES:
        needs[room[name]] |= {room[found] for found in ours(name) & set(MODULES)} - {room[name], "vargface"}
    while ready := {name for name, below in needs.items() if not below}:
        needs = {name: below - ready for name, below in needs.items() if name not in ready}
    assert not needs, f"around a corner: {needs}"


def test_what_needs_no_network_loads_no_mxnet():
    code = (
        "import sys, vargface.cli, vargface.eval.verification, vargface.eval.flops, vargface.eval.table, "
        "vargface.data.records, vargface.data.packs, vargface.recipe\n"
        "assert 'mxnet' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
