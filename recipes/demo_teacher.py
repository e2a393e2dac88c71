"""The demo's teacher: a narrow LResNet18-IR on synthetic faces.

    make train-teacher        (make train-student runs it, too, first of all)

Hardware: 2 CPU cores, no GPU; time: README (within that of the whole demo). Result: README.

500 steps x 32 images = 16,000, 1.6 epochs.
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
    steps=500,
    lr=0.1,
    schedule="cosine",
    warmup_steps=20,
    log_every=20,
    verify_every=10_000,
)
