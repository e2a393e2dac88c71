"""The optimiser of a module: made by the recipe, its state taken out and put back whatever the devices are."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

from easydict import EasyDict

from vargface.runtime import mx
from vargface.training.schedule import learning_rate_schedule
from vargface.training.team import Team

__all__ = ["init_optimizer", "options", "set_states", "share_states", "states_of"]


def options(recipe: EasyDict) -> dict[str, Any]:
    """Return what the optimiser of `recipe` is made with, a schedule of its own in it."""
    found = {"learning_rate": recipe.lr, "wd": recipe.wd, "rescale_grad": 1 / recipe.batch_size}
    found["lr_scheduler"] = learning_rate_schedule(recipe)
    if recipe.optimizer == "sgd":
        found["momentum"] = recipe.momentum
    return found


def init_optimizer(module: mx.mod.Module, recipe: EasyDict, team: Team) -> None:
    """Give `module` the optimiser of `recipe`."""
    # used for several contexts only: without it each would go its own way on its part of the batch. A team has summed
    # over contexts and workers before the update
    device = module._context[0].device_type
    kvstore = None if team.kvstore is not None else "device" if device == "gpu" else "local"
    # an object, as InsightFace gives it: from a name, Module would exempt biases and betas from weight decay
    optimizer = mx.optimizer.create(recipe.optimizer, **options(recipe))
    with warnings.catch_warnings():
        # that rescale_grad is not one over what is bound: that is a part of the batch, with `accumulate` or a team
        warnings.filterwarnings("ignore", message="Optimizer created manually")
        module.init_optimizer(kvstore=kvstore, optimizer=optimizer)


def _updater(module: mx.mod.Module) -> Any:
    # with several contexts the optimiser's state is in the store that sums their gradients
    return module._updater or module._kvstore._updater


def states_of(module: mx.mod.Module) -> bytes:
    """Return the optimiser's state, pickled."""
    return _updater(module).get_states()


def set_states(module: mx.mod.Module, saved: bytes) -> None:
    """Give the optimiser the state that `states_of` returned, of this module or one on more or fewer devices.

    A store of several devices knows parameters by name; without one they go by number, each device's by its own.
    """
    states, names = pickle.loads(saved), module._param_names
    numbered = [key for key in states if isinstance(key, int)]
    copies = max((max(numbered) + 1) // len(names), 1) if numbered else 1
    by_name = {names[key // copies] if isinstance(key, int) else key: value for key, value in states.items()}
    if module._updater is not None:
        devices = range(len(module._context))
        by_name = {names.index(name) * len(devices) + at: value for name, value in by_name.items() for at in devices}
    _updater(module).set_states(pickle.dumps(by_name))


def share_states(module: mx.mod.Module, team: Team) -> None:
    """Have every worker's optimiser hold the state of rank 0's."""
    if team.kvstore is None:
        return
    updater, group = module._updater, module._exec_group
    devices = len(group.contexts)
    for number, (name, weights) in enumerate(zip(group.param_names, group.param_arrays)):
        found = []
        for at, weight in enumerate(weights):
            key = number * devices + at
            if key not in updater.states:
                updater.states[key] = updater.optimizer.create_state_multi_precision(key, weight)
                updater.states_synced[key] = True
            elif not updater.states_synced[key]:
                updater.states[key] = updater.sync_state_context(updater.states[key], weight.context)
                updater.states_synced[key] = True
            state = updater.states[key]
            found.append(state if isinstance(state, (tuple, list)) else [] if state is None else [state])
        for arrays in zip(*found):
            team.give(name, arrays)
