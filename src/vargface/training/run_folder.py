"""A run folder: recipe, logs, InsightFace-ready checkpoints (best and last), the state that a run resumes from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import IO, Any, Dict, Tuple

import numpy as np
from easydict import EasyDict

from vargface.checkpoint import Params, load_params, save_checkpoint, tagged, untagged, write_params
from vargface.errors import InputError
from vargface.files import make_folder, save_whole, sha256, whole_file
from vargface.recipes import base
from vargface.runtime import mx
from vargface.training.log import Board, CsvLog

__all__ = ["RunFolder", "best_of", "distances_of", "generation_folder", "read_json"]

# keys that say where things are and how often to look, not what is trained: they may differ when a run goes on.
# That data, teacher and weights to start from are the same ones is told by what is in them (`trained_on`).
WHERE = {
    "out",
    "data",
    "teacher",
    "teacher_store",
    "init",
    "packs",
    "context",
    "kvstore",
    "generations",
    "log_every",
    "verify_every",
    "save_every",
    "report",
    "may_change",
    # nor how the images are decoded, and when to give up
    "workers",
    "max_bad",
}
# keys that decide which arrays there are and what they are called: these never change within a run
SHAPES = {
    *("network", "variant", "multiplier", "num_layers", "output", "embedding_size", "teacher_map"),
    *("optimizer", "role", "class_share"),
}

# in recipe.json beside the recipe's keys
TRAINED_ON, CHANGED = "trained_on", "changed"

# a state's files beside its .json, which has their SHA-256 under this key; the last is of sampled class centres alone
STATE_PARTS = (".params", ".optimizer", ".centres")
SUMS = "sha256"
# over all else that the .json says, under this key
OWN_SUM = "json_sha256"
# what a state says at least, of the run and of the best checkpoint so far
PLACE = {"step", "number", "verified", "best"}
BEST = {"number", "score", "packs"}

RESULT = {"best", "last", "step", "packs"}

# the arrays of a pack in distances.npz
PAIRS = ("distances", "same")

State = Tuple[Dict[str, Any], Tuple[Params, Params], bytes]

logger = logging.getLogger(__name__)


def generation_folder(out: Path, generation: int) -> Path:
    """Return the folder of one generation of a run in `out`: that itself, then out/gen-2, ..."""
    return out if generation == 1 else out / f"gen-{generation}"


class RunFolder:
    """One generation's folder.

    recipe.json, log.csv, verification.csv, tensorboard/, ROLE-symbol.json, ROLE-%04d.params (numbered by verification;
    the best and the last are kept), result.json (which is which, and the figures of the best) once it is finished,
    state/, report.html, machine.json, distances.npz (of the best checkpoint), diverged.json (of a step not finite).
    """

    def __init__(self, path: str | Path, recipe: EasyDict, trained_on: Mapping[str, str] | None = None) -> None:
        """Open or make folder `path` for `recipe`; `trained_on` is a plan's: what of data, teacher and init tells them
        from others, wherever they lie (None: not asked).

        Raises InputError if the folder has a run of another recipe, data set, teacher or start.
        """
        self.path = make_folder(path)
        self.recipe = recipe
        self.log, self.verifications = CsvLog(self.path / "log.csv"), CsvLog(self.path / "verification.csv")
        self.board = Board(self.path / "tensorboard")
        self._prefix = self.path / recipe.role
        self._sums: dict[str, str] = {}
        known = read_json(self.path / "recipe.json")
        if known is None:
            self._check_new()
            self._write_recipe(trained_on, [])
        else:
            self._go_on_from(known, trained_on or {})

    def _check_new(self) -> None:
        """Raise InputError where there is a run and no recipe.json: nobody can tell what it was trained by."""
        left = [*self.path.glob("state/*.json"), *self.path.glob("result.json")]
        if left:
            raise InputError(
                f"{self.path}: holds {left[0].relative_to(self.path)} and no recipe.json - put that back, choose "
                "another out, or remove the folder to start anew"
            )

    def _go_on_from(self, known: dict[str, Any], trained_on: Mapping[str, str]) -> None:
        """Raise InputError where the run is another one than that of recipe.json, `known`; note what may change."""
        recipe = self.recipe
        # a key that is younger than the run had what is its default now
        known = {**base.recipe, **known}
        changed = {key: known.get(key) for key in recipe if key not in WHERE and known.get(key) != recipe[key]}
        differing = sorted(key for key in changed if key in SHAPES or key not in recipe.may_change)
        allowed = sorted(set(changed) - set(differing))
        recorded = known.get(TRAINED_ON)
        others = []
        for key, found in trained_on.items():
            # a run from before this was recorded is not asked
            then = recorded.get(key, found) if isinstance(recorded, dict) else found
            if then != found:
                others.append(f"{key}: {then or 'none'} then, {found or 'none'} now")
        if differing or others:
            may = [key for key in differing if key not in SHAPES]
            hint = f", or allow it by may_change={','.join(may)}" if may and may == differing and not others else ""
            raise InputError(
                f"{self.path}: holds a run of another recipe ({', '.join([*differing, *others])} differ) - choose "
                f"another out{hint}"
            )
        if allowed and self.result is not None:
            logger.warning("%s: finished, %s stay as they were", self.path, ", ".join(allowed))
        elif allowed:
            for key in allowed:
                logger.warning("%s: %s was %s, is %s from here on", self.path, key, changed[key], recipe[key])
            self._write_recipe(
                recorded, [*known.get(CHANGED, []), {key: [changed[key], recipe[key]] for key in allowed}]
            )

    def _write_recipe(self, trained_on: Mapping[str, str] | None, changed: list[dict[str, Any]]) -> None:
        noted = {CHANGED: changed} if changed else {}
        with whole_file(self.path / "recipe.json", "w") as file:
            json.dump({**self.recipe, TRAINED_ON: dict(trained_on or {}), **noted}, file, indent=1)

    @property
    def result(self) -> dict[str, Any] | None:
        """Return result.json of a finished run: {"best", "last", "step", "packs"}, or None."""
        return read_json(self.path / "result.json", RESULT)

    def save(
        self,
        number: int,
        symbol: mx.sym.Symbol,
        params: tuple[Params, Params],
        keep: set[int],
    ) -> str:
        """Write checkpoint `number` and remove the others but those in `keep`; returns "PREFIX,EPOCH"."""
        model = save_checkpoint(self._prefix, number, symbol, *params)
        for file in self.path.glob(f"{self.recipe.role}-*.params"):
            saved = file.stem[len(self.recipe.role) + 1 :]
            if saved.isascii() and saved.isdigit() and int(saved) not in {number, *keep}:
                file.unlink()
        return model

    def model(self, number: int) -> str:
        """Return "PREFIX,EPOCH" of checkpoint `number`."""
        return f"{self._prefix},{number}"

    def has(self, number: int) -> bool:
        """Return whether checkpoint `number` is there."""
        return self._prefix.with_name(f"{self._prefix.name}-{number:04d}.params").is_file()

    def finish(self, best: dict[str, Any], last: int, step: int) -> None:
        """Write result.json: the run is over. `best` has the number of the best checkpoint and its figures by pack."""
        with whole_file(self.path / "result.json", "w") as file:
            json.dump({"best": best["number"], "last": last, "step": step, "packs": best["packs"]}, file, indent=1)

    def write_distances(self, distances: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Write pack -> (squared L2 (P,), whether same (P,)) of the best checkpoint as distances.npz."""
        arrays = {f"{part}/{name}": found[at] for name, found in distances.items() for at, part in enumerate(PAIRS)}
        save_whole(self.path / "distances.npz", lambda file: np.savez(file, **arrays))

    def write_machine(self, machine: Mapping[str, str]) -> None:
        """Write what the run goes on from here on as machine.json."""
        with whole_file(self.path / "machine.json", "w") as file:
            json.dump(dict(machine), file, indent=1)

    def write_diagnosis(self, found: Mapping[str, Any]) -> Path:
        """Write `found` of a step that is not finite as diverged.json, the one before it gone, and return its path."""
        path = self.path / "diverged.json"
        with whole_file(path, "w") as file:
            json.dump(found, file, indent=1)
        return path

    def save_state(
        self,
        state: dict[str, Any],
        params: tuple[Params, Params],
        optimizer: bytes,
        centres: Callable[[IO[bytes]], None] | None = None,
    ) -> None:
        """Write what training goes on from; the state before it is kept until this one is whole.

        centres: writes the table of class centres, where they are not among `params`.

        Raises InputError where it cannot be written, and where the run folder was removed: made anew, it would hold a
        run of no recipe.
        """
        folder = self.path / "state"
        if not (self.path / "recipe.json").is_file():
            raise InputError(f"{self.path}: was removed, or its recipe.json, while the run went on - put it back")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}) - choose another out") from error
        for left in [*folder.glob(".*.tmp"), *self.path.glob(".*.tmp")]:  # by a kill while writing
            left.unlink()
        stem = folder / f"{state['step']:08d}"
        write_params(stem.with_suffix(".params"), tagged(*params))
        with whole_file(stem.with_suffix(".optimizer")) as file:
            file.write(optimizer)
        if centres is not None:
            with whole_file(stem.with_suffix(".centres")) as file:
                centres(file)
        parts = STATE_PARTS if centres is not None else STATE_PARTS[:2]
        self._sums = {suffix: sha256(stem.with_suffix(suffix)) for suffix in parts}
        # written last: a state without it is not looked at
        self.amend_state(state)
        files = sorted(folder.glob("*.json"), reverse=True)
        # a state of a later step is a damaged one, which training went back behind
        kept = [file.stem for file in files if file.stem <= stem.name][:2]
        # parts without a .json too: a full disk or a kill came between
        for part in [*files, *(part for suffix in STATE_PARTS for part in folder.glob(f"*{suffix}"))]:
            if part.stem not in kept:
                part.unlink()

    def amend_state(self, state: dict[str, Any]) -> None:
        """Write anew what the state saved last says, its weights and optimiser as they are."""
        # as it will be read: JSON has no keys but text
        said = json.loads(json.dumps({**state, SUMS: self._sums}))
        with whole_file(self.path / "state" / f"{state['step']:08d}.json", "w") as file:
            json.dump({**said, OWN_SUM: _sum_of(said)}, file)

    def centres(self, step: int) -> Path:
        """Return the file of sampled class centres that belongs to the state of `step`."""
        return self.path / "state" / f"{step:08d}.centres"

    def load_state(self) -> State | None:
        """Return the newest whole state as it was given to `save_state`, or None where none was saved.

        Says so where newer ones are damaged; raises InputError where all are.
        """
        folder, damaged = self.path / "state", None
        for file in sorted(folder.glob("*.json"), reverse=True):
            try:
                state = _read_state(file)
            except InputError as error:
                damaged = damaged or error
                continue
            if damaged:
                logger.warning("%s - the newest whole state is that of step %d", damaged, state[0]["step"])
            return state
        if damaged:
            raise InputError(f"{damaged}, and no other state in {folder} is whole - remove {folder} to start anew")
        return None


def read_json(path: Path, keys: Set[str] = frozenset()) -> dict[str, Any] | None:
    """Return the object in `path`, None where there is no such file; raises InputError where it lacks `keys`."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}) - remove it, or choose another out") from error
    if not isinstance(found, dict) or not keys <= set(found):
        raise InputError(f"{path}: not what training wrote - remove it, or choose another out")
    return found


def best_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Return number and figures (pack -> `Verification.as_dict`) of the best checkpoint so far of the run in `path`.

    0 and nothing where none was saved.
    """
    result = read_json(path / "result.json", RESULT)
    if result is not None:
        return result["best"], result["packs"]
    for file in sorted(path.glob("state/*.json"), reverse=True):
        with contextlib.suppress(InputError):  # a damaged one: training would go on from the one before it
            best = (read_json(file) or {}).get("best", {})
            return best.get("number", 0), best.get("packs", {})
    return 0, {}


def distances_of(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what `write_distances` wrote of the run in `path`, nothing where it did not."""
    try:
        with np.load(path / "distances.npz") as arrays:
            names = [key.partition("/")[2] for key in arrays if key.startswith(f"{PAIRS[0]}/")]
            return {name: tuple(arrays[f"{part}/{name}"] for part in PAIRS) for name in names}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path / 'distances.npz'}: cannot be read ({error}) - remove it") from error


def _read_state(file: Path) -> State:
    """Return the state of which `file` is the .json; raises InputError, saying no more than what is damaged."""
    try:
        state = json.loads(file.read_text())
        if not isinstance(state, dict) or state.get("step") != int(file.stem):
            raise InputError(f"{file}: damaged (not what training wrote)")
        # a state from before there were checksums is taken if it can be read
        sum_ = state.pop(OWN_SUM, None)
        if sum_ is not None and sum_ != _sum_of(state):
            raise InputError(f"{file}: damaged (its checksum is another)")
        best = state.get("best")
        lacking = sorted(PLACE - set(state)) or sorted(BEST - set(best if isinstance(best, dict) else ()))
        if lacking:
            raise InputError(f"{file}: damaged (has no {', '.join(lacking)})")
        for suffix, sum_ in state.pop(SUMS, {}).items():
            part = file.with_suffix(suffix)
            if sha256(part) != sum_:
                raise InputError(f"{part}: damaged (its checksum is not that in {file.name})")
        params = untagged(load_params(file.with_suffix(".params")))
        return state, params, file.with_suffix(".optimizer").read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: missing") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error})") from error


def _sum_of(said: dict[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of what a state's .json says."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
