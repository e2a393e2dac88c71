"""One generation in training: its module, its steps, its logs, its verifications, its states."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

from vargface.checkpoint import Checkpoint, Params
from vargface.errors import InputError
from vargface.inference import FrozenNetwork
from vargface.interrupt import Terminated, interrupt_after_step
from vargface.progress import LoggedProgress
from vargface.runtime import machine, mx
from vargface.teachers.store import TeacherStore
from vargface.training.centres import Centres
from vargface.training.diagnosis import diagnose
from vargface.training.faces import faces_of
from vargface.training.initialise import Start
from vargface.training.log import Means
from vargface.training.objective import MARGIN_WEIGHT
from vargface.training.optimiser import init_optimizer, set_states, share_states, states_of
from vargface.training.plan import Plan
from vargface.training.report import write_report
from vargface.training.run_folder import RunFolder
from vargface.training.schedule import ramp
from vargface.training.step import NotFinite, Step
from vargface.training.teacher import TaughtIterator, Teacher
from vargface.training.verifier import mean_accuracy, verify_packs
from vargface.training.watch import Watch

__all__ = ["VERIFY_BATCH", "Generation"]

logger = logging.getLogger(__name__)

VERIFY_BATCH = 32


class Generation:
    """One generation in training."""

    def __init__(self, plan: Plan, folder: RunFolder, teacher: Teacher | TeacherStore | None, generation: int) -> None:
        self._folder, self._network, self._packs, self._objective = folder, plan.network, plan.packs, plan.objective
        self._recipe, self._team = recipe, team = folder.recipe, plan.team
        self._batch_size = recipe.batch_size // team.size
        self._step, self._number, self._verified, self._skipped = 0, 0, 0, 0
        self._best: dict[str, Any] = {"number": 0, "score": -1.0, "packs": {}}
        # the generation before has learnt the margin: the next one has it all along
        self._ramp = recipe.margin_ramp if generation == 1 else [0, 0]
        self._watch = Watch(recipe)
        self._faces: Any = faces_of(plan, recipe.seed + generation - 1)
        self._unusable = self._faces.faults
        self.batches_per_epoch = self._faces.batches_per_epoch
        if teacher is not None:
            self._faces = TaughtIterator(self._faces, teacher)
        self._drops = '"op": "Dropout"' in plan.network.tojson()
        self._labels = [*self._faces.provide_label]
        if MARGIN_WEIGHT in self._objective.label_names:
            self._labels.append(mx.io.DataDesc(MARGIN_WEIGHT, (self._batch_size,)))
        self.module = mx.mod.Module(
            self._objective.symbol,
            label_names=self._objective.label_names,
            state_names=self._objective.states,
            context=plan.devices,
            logger=logger,
        )
        part = self._batch_size // recipe.accumulate
        data, labels = ([_of_size(part, desc) for desc in descs] for descs in (self._faces.provide_data, self._labels))
        self.module.bind(data, labels, grad_req=self._objective.grad_req("write" if recipe.accumulate == 1 else "add"))
        self._centres = None
        if recipe.class_share:
            self._centres = Centres(recipe, plan.records.num_identities, team, self.module)
        self._seed = recipe.seed + generation - 1
        look = self._objective.gradient_norms
        self._take_step = Step(self.module, self._objective.outputs, recipe.accumulate, look, team, self._centres)
        self._device, self._records = plan.devices[0], plan.records

    def fit(self, weights: tuple[Params, Params] | None, centres: Path | None = None) -> tuple[Params, Params]:
        """Train to the last step, from a saved state if there is one, and return the last weights with fc7.

        centres: sampled class centres to start from, of a state of the generation before.
        """
        recipe = self._recipe
        self._start(weights, centres)
        self._folder.write_machine(machine())
        logged = [*self._objective.outputs, *self._objective.gradients]
        means = Means(logged, self._batch_size // recipe.accumulate, self._objective.spread)
        name = str(self._folder.path)
        with interrupt_after_step() as stop, contextlib.closing(self._folder.board), tqdm(
            total=recipe.steps, initial=self._step, unit="step", disable=None, desc=name
        ) as bar:
            progress = LoggedProgress(name, "step", recipe.steps, self._step)
            if self._step > self._verified and self._is_due_for_verification():
                self._verify_and_save(stop)  # which the run before was stopped in
            while self._step < recipe.steps:
                self._train_step(means)
                bar.update()
                last = self._step == recipe.steps
                if last or self._step % recipe.log_every == 0:
                    shown = self._log(means)
                    bar.set_postfix_str(shown)
                    if bar.disable:
                        progress(self._step, shown)
                with means.clock_stopped():
                    self._team.note(stop=stop.asked is not None, save=stop.save)
                    heard = self._team.heard
                    if self._is_due_for_verification():
                        self._verify_and_save(stop)
                    elif heard or self._step % recipe.save_every == 0:
                        self._save_state(self.params())
                    if "save" in heard:
                        stop.save = False
                        logger.info("%s: saved at step %d", name, self._step)
                if "stop" in heard and not last:
                    raise stop.asked or Terminated
        self._faces.close()
        self._folder.finish(self._best, self._number, self._step)
        if recipe.report and self._team.leads:
            write_report(self._folder)
        self._team.note(stop=stop.asked is not None)
        self._team.hear()
        if "stop" in self._team.heard:  # behind the last verification: the generation is done, nothing else is begun
            raise stop.asked or Terminated
        return self.params()

    def timed_steps(self, weights: tuple[Params, Params] | None, count: int) -> list[float]:
        """Go `count` + 1 steps from `weights`, return the seconds of all but the first; nothing is logged or saved."""
        self._start(weights)
        seconds = []
        for _ in range(count + 1):
            start = time.perf_counter()
            self._take_step(self._next_batch())
            mx.nd.waitall()
            seconds.append(time.perf_counter() - start)
        self._faces.close()
        return seconds[1:]

    def _is_due_for_verification(self) -> bool:
        return self._step == self._recipe.steps or self._step % self._recipe.verify_every == 0

    def params(self) -> tuple[Params, Params]:
        """Return the weights and the moving statistics after the steps so far: of a team, the mean of its workers'."""
        # batch norm's backward writes the moving statistics without telling the engine: reading them waits for nothing
        mx.nd.waitall()
        args, auxs = self.module.get_params()
        for name in self.module._aux_names:
            self._team.mean(name, [auxs[name]])
        return args, auxs

    def _start(self, weights: tuple[Params, Params] | None, centres: Path | None = None) -> None:
        recipe = self._recipe
        # the initialisers draw from numpy and MXNet's own generators
        mx.random.seed(recipe.seed)
        np.random.seed(recipe.seed)
        state = self._folder.load_state()
        if state is not None:
            weights = state[1]
        args, auxs = weights or ({}, {})
        self.module.init_params(Start(recipe), arg_params=args, aux_params=auxs, allow_missing=True, allow_extra=True)
        init_optimizer(self.module, recipe, self._team)
        if state is not None:
            self._resume(state[0], state[2])
            centres = self._folder.centres(self._step)
        self._follow()
        if self._centres is not None:
            self._centres.start(centres, self.module._optimizer.num_update, with_momentum=state is not None)
        # a run that was killed had logged more than it had saved; what follows is logged again
        self._folder.log.drop_after(self._step)
        self._folder.verifications.drop_after(self._verified)
        self._folder.board.drop_after(self._step)
        for row in self._folder.log.rows():
            # it goes by what came before, too; what it says of that was said
            self._watch({name: float(value) for name, value in row.items() if value})

    def _follow(self) -> None:
        """Begin where rank 0 of the team does."""
        optimizer, group = self.module._optimizer, self.module._exec_group
        place = self._step, self._verified, self._skipped, optimizer.num_update
        self._step, self._verified, self._skipped, updates = self._team.agreed(*place)
        for names, arrays in ((group.param_names, group.param_arrays), (group.aux_names, group.aux_arrays)):
            for name, each in zip(names, arrays):
                self._team.give(name, each)
        self.module._params_dirty = True  # they are not what `init_params` was told
        share_states(self.module, self._team)
        # steps that were left out are no updates: the rate has not gone on with them
        optimizer.begin_num_update = optimizer.num_update = updates
        self._faces.seek(*divmod(self._step, self.batches_per_epoch))

    def _resume(self, place: dict[str, Any], optimizer: bytes) -> None:
        self._step, self._number, self._verified = place["step"], place["number"], place["verified"]
        # these three are younger than the others
        self._skipped, updates = place.get("skipped", 0), place.get("updates", place["step"])
        self._unusable.update({int(position): why for position, why in place.get("unusable", {}).items()})
        if self._step > self._recipe.steps:
            raise InputError(
                f"{self._folder.path}: steps = {self._recipe.steps}, and the run is at step {self._step} - give as "
                "many or more"
            )
        if self._folder.has(place["best"]["number"]):  # else: behind a damaged state, whose best took its place
            self._best = place["best"]
        packs = {pack.name for pack in self._packs}
        if self._best["packs"] and set(self._best["packs"]) != packs:
            logger.warning("%s: verified on other packs than before, the best is chosen anew", self._folder.path)
            self._best = {"number": 0, "score": -1.0, "packs": {}}
        set_states(self.module, optimizer)
        self.module._optimizer.num_update = updates
        logger.info("%s: resumed at step %d", self._folder.path, self._step)

    def _train_step(self, means: Means) -> None:
        batch = self._next_batch()
        # what dropout draws follows from the step, so that a resumed run draws the same
        part = self._step * self._team.size + self._team.rank
        seed = self._recipe.seed * 1_000_003 + part * self._recipe.accumulate if self._drops else None
        try:
            for outputs in self._take_step(batch, seed):
                means.add(outputs)
        except NotFinite as fault:
            self._leave_out(fault)
        self._step += 1

    def _next_batch(self) -> mx.io.DataBatch:
        try:
            batch = self._faces.next()
        except StopIteration:
            self._faces.reset()
            batch = self._faces.next()
        if MARGIN_WEIGHT in self._objective.label_names:
            weight = ramp(self._step, *self._ramp)
            batch.label = [*batch.label, mx.nd.full((self._batch_size,), weight)]
            batch.provide_label = self._labels
        if self._centres is not None:
            updates = self.module._optimizer.num_update
            taken = self._centres.take(batch.label[0].asnumpy(), (self._seed, self._step), updates)
            batch.label = [mx.nd.array(taken), *batch.label[1:]]
        return batch

    def _leave_out(self, fault: NotFinite) -> None:
        """Count a step that is not gone; raises InputError with the diagnosis when there were too many of them."""
        self._skipped += 1
        step, outputs, few = self._step + 1, self._objective.outputs, self._skipped <= self._recipe.skip_steps
        if fault.where == "elsewhere":
            what = f"{self._folder.path}: step {step}: {fault}, whose log says more"
            if few:
                logger.warning("%s: left out, the %d. of at most %d", what, self._skipped, self._recipe.skip_steps)
                return
            raise InputError(f"{what}: diverged - lower lr, or a longer warmup_steps")
        found = diagnose(fault, self.module, outputs, self._recipe, self._records, step, self._lr)
        path = self._folder.write_diagnosis(found)
        what = (
            f"{self._folder.path}: step {step}: {fault} ({found['likely'][0] if found['likely'] else 'no cause seen'})"
        )
        if not few:
            raise InputError(
                f"{what}: diverged - lower lr, or a longer warmup_steps (may_change=lr where a state was saved); "
                f"{path} says more"
            )
        logger.warning("%s: left out, the %d. of at most %d", what, self._skipped, self._recipe.skip_steps)

    @property
    def _lr(self) -> float:
        return self.module._optimizer.learning_rate

    def _log(self, means: Means) -> str:
        """Log the steps since the last row, and return what of it is shown beside the progress."""
        row = self._objective.of_labelled(means.take())
        if self._team.size > 1:
            values = mx.nd.array(list(row.values()))
            self._team.mean("row of the log", [values])
            row = dict(zip(row, map(float, values.asnumpy())))
        row["images_per_second"] *= self._team.size
        if not self._team.leads:
            return ""
        if self._recipe.skip_steps:
            row["steps_left_out"] = self._skipped
        place = {"step": self._step, "epoch": self._faces.epoch, "lr": self._lr}
        self._folder.log.write({**place, **row})
        self._folder.board.write(self._step, {f"train/{name}": value for name, value in {**place, **row}.items()})
        for warning in self._watch({**place, **row}):
            logger.warning("%s: step %d: %s", self._folder.path, self._step, warning)
        loss = row["margin_loss"] + row.get("distillation_loss", 0.0)
        return f"loss={loss:.3g}, img/s={row['images_per_second']:.3g}"

    def _verify_and_save(self, stop: SimpleNamespace) -> None:
        """Save, verify, note the best.

        Raises what `stop` asks for between two batches, the rerun verifies again; not in a team, which waits for this.
        """

        def leave_if_asked() -> None:
            if stop.asked and self._team.size == 1:
                raise stop.asked

        args, auxs = params = self.params()
        # first: whatever stops the verification, these steps are not lost
        self._save_state(params)
        self._verified = self._step
        if not self._team.leads:
            return
        network = FrozenNetwork(Checkpoint(self._network, args, auxs, "training"), VERIFY_BATCH, self._device)
        results = verify_packs(network, self._packs, on_batch=leave_if_asked)
        self._number += 1
        for name, result in results.items():
            figures = {key: getattr(result, key) for key in ("accuracy", "accuracy_std", "tar", "far", "xnorm")}
            self._folder.verifications.write({"step": self._step, "number": self._number, "pack": name, **figures})
            self._folder.board.write(self._step, {f"{key}/{name}": value for key, value in figures.items()})
        score = mean_accuracy(results)
        if score >= self._best["score"]:
            packs = {name: result.as_dict() for name, result in results.items()}
            self._best = {"number": self._number, "score": score, "packs": packs}
            self._folder.write_distances(
                {pack.name: (results[pack.name].distances, pack.issame) for pack in self._packs}
            )
        self._folder.save(self._number, self._network, params, keep={self._best["number"]})
        self._folder.amend_state(self._place())
        # at the end `fit` writes it, of the finished run; who is to stop has no time for it
        if self._recipe.report and self._step < self._recipe.steps and not stop.asked:
            write_report(self._folder)

    def _save_state(self, params: tuple[Params, Params]) -> None:
        if not self._team.leads:
            return
        if not all(np.isfinite(mx.nd.norm(value).asscalar()) for values in params for value in values.values()):
            raise InputError(
                f"{self._folder.path}: diverged by step {self._step}, a weight is not finite - lower lr, or a longer "
                "warmup_steps; the state before it is kept"
            )
        centres = self._centres and self._centres.save
        self._folder.save_state(self._place(), params, states_of(self.module), centres)

    def _place(self) -> dict[str, Any]:
        """Return what a state says beside its arrays; `_resume` takes it back."""
        return {
            "step": self._step,
            "number": self._number,
            "best": self._best,
            "verified": self._verified,
            "skipped": self._skipped,
            "updates": self.module._optimizer.num_update,
            "unusable": {str(position): why for position, why in self._unusable.items()},
        }


def _of_size(batch_size: int, desc: mx.io.DataDesc) -> mx.io.DataDesc:
    """Return `desc` with the first dimension `batch_size`."""
    return mx.io.DataDesc(desc.name, (batch_size, *desc.shape[1:]))
