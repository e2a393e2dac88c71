"""The demo's teacher: a narrow LResNet18-IR on synthetic faces.

    make train-teacher        (make train-student runs it, too, first of all)

Hardware: 2 CPU cores, no GPU; time: README (within that of the whole demo). Result: README.

200 steps x 32 images = 6,400.
"""

from easydict import EasyDict

recipe = EasyDict(
    role="teacher",
    network="resnet",
    num_layers=18,
    output="FC",
    multiplier=0.25,
    embedding_size=128,
    residual_gamma=0.2,
    scale=16.0,
    m2=0.1,
    batch_size=32,
    steps=200,
    lr=0.1,
    schedule="cosine",
    warmup_steps=20,
    log_every=20,
    verify_every=10_000,
)
