"""VarGFaceNet at full width on real-mini (10,598 photos of 299 people), distilled from InsightFace's MobileFaceNet y1."""

from easydict import EasyDict

recipe = EasyDict(
    network="vargfacenet",
    multiplier=1.25,
    embedding_size=128,
    scale=32.0,
    m2=0.3,
    alpha=7.0,
    batch_size=32,
    steps=3000,
    lr=0.1,
    wd=5e-4,
    schedule="cosine",
    warmup_steps=200,
    log_every=20,
    verify_every=1000,
)
