"""The one door to MXNet."""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
import mxnet as mx  # noqa: E402

__all__ = ["mx"]
