"""`vargface launch`: a command as a job of several processes, on this machine or on several."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vargface.commands import add_command, parsed, train, whole
from vargface.errors import InputError

__all__ = ["add_to"]


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    launch = add_command(commands, "launch", _launch, "train by several processes, on this machine or on several")
    launch.add_argument("-n", "--workers", type=whole(1, 1024), required=True, help="processes that train")
    launch.add_argument("-s", "--servers", type=whole(1, 1024), help="processes that sum gradients; default: as many")
    launch.add_argument("--hosts", metavar="FILE", help="machines, one a line: NAME [ADDRESS]; default: this one")
    launch.add_argument("--port", type=whole(1, 65535), help="of the scheduler; default: one that is free here")
    launch.add_argument("--ssh", default="ssh -o BatchMode=yes", metavar="COMMAND", help="default: %(default)s")
    launch.add_argument("command", nargs="+", metavar="-- train RECIPE KEY=VALUE", help="as without `launch`")
    launch.epilog = (
        "example: vargface launch -n 2 -- train recipes/lfr_student.py data=ms1m teacher=r100/model,0 out=runs/lfr-2"
    )


def _launch(arguments: argparse.Namespace) -> int:
    from vargface.jobs.launch import Failure, Stopped, launch, read_hosts
    from vargface.runtime import cores

    recipe, command = _job(arguments.command)
    hosts = read_hosts(arguments.hosts) if arguments.hosts else []
    if not hosts:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // arguments.workers, 1)))
    servers = arguments.servers or arguments.workers
    logs = Path(recipe.out) / "logs"
    goes_on = "the same command goes on from the last saved state"
    try:
        launch(command, arguments.workers, servers, logs=logs, hosts=hosts, ssh=arguments.ssh, port=arguments.port or 0)
    except Failure as failure:
        print(
            f"vargface: error: {failure} - the job is ended, {goes_on}; {logs} has all that was said", file=sys.stderr
        )
        return failure.code
    except Stopped as stopped:
        print(f"vargface: stopped; {goes_on}", file=sys.stderr)
        return stopped.code
    return 0


def _job(command: list[str]) -> tuple[dict, list[str]]:
    """Return the recipe of a command `train ...`, and the command with a kvstore for several processes in it."""
    from vargface.recipe import load_recipe

    if command[0] != "train":
        raise InputError(f"launch {command[0]}: only train is for several processes - write -- train RECIPE ...")
    parser = argparse.ArgumentParser(prog="vargface launch --")
    train.add_to(parser.add_subparsers())
    arguments = parsed(parser, command)
    if arguments.dry_run or arguments.test_io:
        raise InputError("launch: --dry-run and --test-io are for one process - run them without launch")
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if not recipe.out:
        raise InputError("out is not given - add out=FOLDER")
    return recipe, [*command, *([] if recipe.kvstore else ["kvstore=dist_sync"])]
