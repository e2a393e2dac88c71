"""`vargface doctor`: what is right and wrong with this machine, a line each."""

from __future__ import annotations

import argparse

from vargface.commands import add_command

__all__ = ["add_to"]


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    doctor = add_command(
        commands, "doctor", _doctor, "look at Python, MXNet, GPU, CUDA, threads, disk; exit 1 on a fault"
    )
    doctor.epilog = "example: vargface doctor"


def _doctor(_: argparse.Namespace) -> int:
    from vargface.doctor import FAULT, examine

    findings = examine()
    print("\n".join(map(str, findings)))
    return int(any(finding.mark == FAULT for finding in findings))
