"""VarGFaceNet at full width on real-mini (10,598 photos of 299 people), distilled from InsightFace's MobileFaceNet y1.

    make train-student RECIPE=recipes/real_mini_student.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini

Hardware and time: 2 CPU cores; 2 h 24 min on one of them, the other one busy as well. Result (docs/results.md): mini_ff
89.25, mini_fp 85.12; with ARGS="generations=2", as long again, 90.00 and 84.62; real_mini_distill.py goes on from it.
The teacher has 95.25 and 93.00.

6,000 steps x 16 images = 96,000, 9 epochs, no view of a photo twice: half of the faces are mixed from two people's.
Distillation goes first: the margin loss trains the class centres from the start, the network from step 1,500 on, fully
from step 3,000 on. Without TEACHER (ArcFace alone) the same recipe, with nothing mixed.
"""

from easydict import EasyDict

recipe = EasyDict(
    network="vargfacenet",
    multiplier=1.25,
    embedding_size=128,
    residual_gamma=0.2,
    scale=32.0,
    m2=0.3,
    distillation="angular",
    alpha=30.0,
    margin_ramp=[1500, 3000],
    augment=0.5,
    mix=0.5,
    batch_size=16,
    steps=6000,
    optimizer="adam",
    lr=3e-3,
    wd=0.0,
    schedule="cosine",
    warmup_steps=100,
    log_every=25,
    verify_every=1500,
    save_every=250,
)
