"""`vargface flops`: what a network costs, as the LFR challenge counts it."""

from __future__ import annotations

import argparse
import logging

from vargface.commands import add_command, takes_overrides

__all__ = ["add_to"]

logger = logging.getLogger(__name__)


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    flops = add_command(commands, "flops", _flops, "operations as the LFR challenge counts them, parameters, bytes")
    flops.add_argument("--model", metavar="PREFIX,EPOCH", help="a checkpoint; without it: of the recipe's network")
    flops.add_argument("--recipe", default="base", help="a recipe (default: base, the paper's VarGFaceNet)")
    flops.add_argument("--layers", action="store_true", help="by layer")
    takes_overrides(flops)
    flops.epilog = "example: vargface flops network=resnet num_layers=50"


def _flops(arguments: argparse.Namespace) -> None:
    from vargface.checkpoint import load_checkpoint
    from vargface.eval.flops import network_cost
    from vargface.eval.table import layer_table
    from vargface.recipe import load_recipe, network_symbol

    if arguments.model:
        symbol = load_checkpoint(arguments.model).symbol
    else:
        symbol = network_symbol(load_recipe(arguments.recipe, arguments.overrides))
    cost = network_cost(symbol)
    if arguments.layers:
        print(layer_table(cost))
    if cost.warning:
        logger.warning("%s", cost.warning)
    print(f"challenge FLOPs {cost.flops:,}   MACs {cost.macs:,}")
    print(
        f"learnable parameters {cost.params:,}   payload {cost.payload_bytes:,} bytes   file {cost.file_bytes:,} bytes"
    )
