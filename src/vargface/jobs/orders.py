"""What launcher and members agree on: who there is, and the words for signals."""

from __future__ import annotations

import signal

__all__ = ["NAMES", "ROLES"]

ROLES = ("scheduler", "server", "worker")
NAMES = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "KILL": signal.SIGKILL}
