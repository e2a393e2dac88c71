"""`vargface launch`: a command as a job of several processes, on this machine or on several."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from vargface.commands import add_command, parsed, train, whole
from vargface.errors import InputError
from vargface.files import locked_folder

__all__ = ["add_to"]

# a machine that is gone without a word ends the job in a minute
SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4"


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    launch = add_command(commands, "launch", _launch, "train by several processes, on this machine or on several")
    launch.add_argument("-n", "--workers", type=whole(1, 1024), required=True, help="processes that train")
    launch.add_argument("-s", "--servers", type=whole(1, 1024), help="processes that sum gradients; default: as many")
    launch.add_argument("--hosts", metavar="FILE", help="machines, one a line: NAME [ADDRESS]; default: this one")
    launch.add_argument("--port", type=whole(1, 65535), help="of the scheduler; default: one that is free here")
    launch.add_argument("--ssh", default=SSH, metavar="COMMAND", help="default: %(default)s")
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
    servers, out = arguments.servers or arguments.workers, Path(recipe.out)
    end = None
    with _logs_of(out, bool(hosts)) as logs:
        try:
            ssh, port = arguments.ssh, arguments.port or 0
            launch(command, arguments.workers, servers, logs=logs, hosts=hosts, ssh=ssh, port=port)
        except (Failure, Stopped) as met:
            end = met
    if end is None:
        return 0
    goes_on = "the same command goes on from the last saved state"
    if not any(out.glob("**/state/*.json")):
        # other machines may have another disk
        goes_on = f"{goes_on}, if there is one" if hosts else "nothing was saved"
    said = f"; {logs} has all that was said" if logs.exists() else ""
    error = f"error: {end} - the job is ended, {goes_on}{said}"
    with contextlib.suppress(OSError):  # nobody takes it; the code says it
        print(f"vargface: {f'stopped; {goes_on}' if isinstance(end, Stopped) else error}", file=sys.stderr)
    return end.code


@contextlib.contextmanager
def _logs_of(out: Path, elsewhere: bool) -> Iterator[Path]:
    """Yield the folder OUT/logs, kept from other launchers; of a job that began no run nothing is left.

    elsewhere: whether OUT may be on other machines, so that it cannot be told from here.
    """
    logs = out / "logs"
    made = [folder for folder in (logs, *logs.parents) if not folder.exists()]
    with locked_folder(logs):
        try:
            yield logs
        finally:
            if logs in made and not elsewhere and not (out / "recipe.json").exists():
                shutil.rmtree(logs, ignore_errors=True)
                with contextlib.suppress(OSError):  # it has other things in it
                    for folder in made[1:]:
                        folder.rmdir()


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
