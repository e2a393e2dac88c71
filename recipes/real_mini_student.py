"""VarGFaceNet at full width on real-mini (10,598 photos of 299 people), distilled from InsightFace's MobileFaceNet y1.

    make train-student RECIPE=recipes/real_mini_student.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini

Hardware and time: 2 cores; not yet run to its end. Result: none yet.

1,600 steps x 16 images = 25,600, 2.4 epochs. With so few people the teacher is the richer lesson, so distillation goes
first: the margin loss trains the class centres from the start, but the network only from step 800 on.
"""

from easydict import EasyDict

recipe = EasyDict(
    network="vargfacenet",
    multiplier=1.25,
    embedding_size=128,
    scale=32.0,
    m2=0.3,
    distillation="angular",
    alpha=7.0,
    margin_ramp=[800, 1300],
    batch_size=16,
    steps=1600,
    optimizer="adam",
    lr=1.5e-3,
    wd=0.0,
    schedule="cosine",
    warmup_steps=100,
    log_every=20,
    verify_every=1600,
)
