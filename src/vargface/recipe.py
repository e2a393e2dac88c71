"""Recipes: which experiment is run. A recipe file overrides recipes/base.py, the command line both."""

from __future__ import annotations

import ast
import copy
import difflib
import importlib
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from easydict import EasyDict

from vargface.errors import InputError
from vargface.recipes import base

__all__ = ["load_recipe", "network_symbol", "read_recipe_file"]

# what `symbols` take by themselves; not asked of them: they load MXNet, before which training has settings to make
MULTIPLIERS = {"vargfacenet": 1.25}
# by network and variant
EMBEDDING_SIZES = {("mobilefacenet", ""): 128, ("mobilefacenet", "y1"): 128, ("mobilefacenet", "y2"): 256}


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> EasyDict:
    """Return the recipe of file `recipe` (a path, or a name of this package's recipes) with KEY=VALUE `overrides`.

    Raises InputError for a file that is missing or is no recipe, an unknown key (naming the nearest known one) and a
    value of another type than the default's.
    """
    result = copy.deepcopy(base.recipe)
    for key, value in read_recipe_file(recipe)["recipe"].items():
        result[key] = _checked(key, value, str(recipe))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"argument {override!r}: must be KEY=VALUE, e.g. lr=0.05")
        result[key] = _checked(key, _parsed(key, text), f"argument {override!r}")
    # what is left to the network is what its paper has
    result.multiplier = result.multiplier or MULTIPLIERS.get(result.network, 1.0)
    result.embedding_size = result.embedding_size or EMBEDDING_SIZES.get((result.network, result.variant), 512)
    return result


def read_recipe_file(recipe: str | Path) -> dict[str, Any]:
    """Return what file `recipe` defines, `recipe` among it, unchecked: a path, or a name such as "study/real_mini".

    Raises InputError where there is no such file, or it defines no `recipe`.
    """
    path = Path(recipe)
    if not path.is_file():
        folder = Path(base.__file__).parent
        packaged = {file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("[!_]*.py")}
        if str(recipe) not in packaged:
            known = ", ".join(sorted(set(packaged) - {"base"}))
            raise InputError(f"recipe {str(recipe)!r}: no such file - give a path, or one of {known}")
        path = packaged[str(recipe)]
    try:
        found = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}: not a recipe ({type(error).__name__}: {error})") from error
    if not isinstance(found.get("recipe"), dict):
        raise InputError(f"{path}: has no `recipe = EasyDict(...)` - see recipes/base.py")
    return found


def network_symbol(recipe: EasyDict) -> Any:
    """Return the symbol of the recipe's network, ending in `fc1`. Raises InputError where its keys do not fit."""
    options = {
        "vargfacenet": {"variant": recipe.variant or "authors", "multiplier": recipe.multiplier},
        "resnet": {"num_layers": recipe.num_layers, "output": recipe.output, "multiplier": recipe.multiplier},
        "mobilefacenet": {"variant": recipe.variant or "y1"},
    }
    if recipe.network not in options:
        raise InputError(f"network = {recipe.network!r}: must be one of {', '.join(options)}")
    module = importlib.import_module(f"vargface.symbols.{recipe.network}")
    try:
        return module.get_symbol(embedding_size=recipe.embedding_size, **options[recipe.network])
    except ValueError as error:
        raise InputError(f"network = {recipe.network!r}: {error}") from error


def _checked(key: str, value: Any, where: str) -> Any:
    if key not in base.recipe:
        nearest = difflib.get_close_matches(str(key), base.recipe, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "recipes/base.py lists all"
        raise InputError(f"{where}: unknown key {key!r} - {hint}")
    default = base.recipe[key]
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if type(value) is not type(default):
        kind = {"str": "text", "int": "a whole number", "float": "a number", "bool": "True or False", "list": "a list"}
        raise InputError(f"{where}: {key} must be {kind[type(default).__name__]}, e.g. {default!r}, not {value!r}")
    if isinstance(default, list) and {type(item) for item in value} - {type(default[0]) if default else str}:
        items = f"whole numbers, e.g. {default!r}" if default else "text, e.g. ['lfw.bin']"
        raise InputError(f"{where}: {key} must be a list of {items}, not {value!r}")
    return value


def _parsed(key: str, text: str) -> Any:
    """Return the value of KEY=TEXT: text stays text for a key that holds text, else a Python literal is read."""
    default = base.recipe.get(key)
    if isinstance(default, str):
        return text
    if isinstance(default, list) and not text.startswith("["):
        # a list that is empty by default holds text (files), which comes without quotes
        text = f"[{text}]" if default else repr([item for item in text.split(",") if item])
    if isinstance(default, bool):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
