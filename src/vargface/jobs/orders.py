"""What launcher and members agree on: who there is, a worker's number, and the words for signals."""

from __future__ import annotations

import signal

__all__ = ["NAMES", "RANK", "ROLES"]

# the variable that tells a worker its number. MXNet's own rank follows from the order of ports and addresses, so that
# another machine could lead, and look for the run folder, the next time
RANK = "VARGFACE_RANK"
ROLES = ("scheduler", "server", "worker")
NAMES = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "KILL": signal.SIGKILL}
