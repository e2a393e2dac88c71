"""A teacher on more synthetic faces than the demo has time for: what a well-trained network gets on their packs.

    vargface synth data/synthetic-1000 --identities 1000 --images 20 --pairs 20 --seed 1
    vargface synth data/synthetic
    make train-teacher RECIPE=recipes/synthetic_teacher.py DATA=data/synthetic-1000 OUT=runs/synthetic-teacher \\
        ARGS="packs=data/synthetic/lfw.bin,data/synthetic/cfp_fp.bin,data/synthetic/agedb_30.bin"

Hardware and time: one CPU core, 70 images a second when it has it to itself: half an hour. Result on the three packs:
96.50, 93.17, 95.67 after the first generation, 98.50, 97.83, 98.00 after the second.

2,000 steps x 32 images = 64,000, 3.2 epochs a generation; the second one restarts the schedule, without a teacher.
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
    scale=32.0,
    m2=0.1,
    generations=2,
    batch_size=32,
    steps=2000,
    lr=0.1,
    schedule="cosine",
    warmup_steps=100,
    log_every=50,
    verify_every=1000,
    save_every=250,
)
