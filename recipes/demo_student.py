"""The demo's student: a narrow VarGFaceNet on synthetic faces, two generations.

    make train-student

Hardware: 2 CPU cores, no GPU; time: README (of the whole demo, in which this recipe is run for one generation without
distillation and for two with it). Result: README.

240 steps x 32 images = 7,680 a generation, three quarters of an epoch.
"""

from easydict import EasyDict

recipe = EasyDict(
    network="vargfacenet",
    multiplier=0.25,
    embedding_size=128,
    residual_gamma=0.2,
    scale=16.0,
    m2=0.1,
    alpha=7.0,
    generations=2,
    batch_size=32,
    steps=240,
    lr=0.1,
    schedule="cosine",
    warmup_steps=20,
    log_every=20,
    verify_every=10_000,
)
