"""VarGFaceNet on Apache MXNet: its training, verification and export, for InsightFace's data and checkpoints."""

__version__ = "0.1.0"
