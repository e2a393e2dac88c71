"""VarGFaceNet at full width on real-mini (10,598 photos of 299 people), distilled from InsightFace's MobileFaceNet y1.

    make train-student RECIPE=recipes/real_mini_student.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini

Hardware and time: 2 CPU cores; 1 h 59 min on one of them, the other one busy as well. Result (docs/results.md): mini_ff
86.50, mini_fp 82.12; without TEACHER (ArcFace alone) 83.67 and 82.25; the teacher has 95.25 and 93.00.

5,000 steps x 16 images = 80,000, 7.5 epochs. Distillation goes first: the margin loss trains the class centres from the
start, the network from step 2,500 on.
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
