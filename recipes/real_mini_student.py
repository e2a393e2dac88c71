"""VarGFaceNet at full width on real-mini (10,598 photos of 299 people), distilled from InsightFace's MobileFaceNet y1.

    make train-student RECIPE=recipes/real_mini_student.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini

Hardware and time: 2 cores; not yet run to its end. Result: none yet.

5,000 steps x 16 images = 80,000, 7.5 epochs. With so few people the teacher is the richer lesson, so distillation goes
first: the margin loss trains the class centres from the start, the network only from step 2,500 on, by and by.
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
    alpha=7.0,
    margin_ramp=[2500, 3000],
    batch_size=16,
    steps=5000,
    optimizer="adam",
    lr=3e-3,
    wd=0.0,
    schedule="cosine",
    warmup_steps=100,
    log_every=25,
    verify_every=1250,
    save_every=250,
)
