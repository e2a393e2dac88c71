"""What launcher and members agree on: who there is, a worker's number, the words for signals, the time to stop."""

from __future__ import annotations

import signal

__all__ = ["NAMES", "RANK", "ROLES", "STOP_SECONDS"]

# the variable that tells a worker its number. MXNet's own rank follows from the order of ports and addresses, so that
# another machine could lead, and look for the run folder, the next time
RANK = "VARGFACE_RANK"
ROLES = ("scheduler", "server", "worker")
NAMES = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "KILL": signal.SIGKILL}
# seconds, for a verification that goes on to end and for rank 0 to save: once a signal came, another worker has stopped
# or the launcher is gone
STOP_SECONDS = 600.0
