"""VarGFaceNet for the LFR challenge, distilled from LResNet100E-IR on ms1m-retinaface, two generations.

    make train-student RECIPE=recipes/lfr_student.py DATA=faces_ms1m-retinaface TEACHER=runs/lfr-teacher/teacher,120 \\
        OUT=runs/lfr-student

Hardware and time: not yet run. A step of 512 images is 512 x (1.02 x 3 + 24.17) GFLOPs = 13.9 TFLOPs with the teacher
in the loop, nine tenths of it the teacher's: make a store of it first (docs/teachers.md).
Result: not yet run. Published by the authors: recursive=1 LFW 99.783, CFP-FP 98.400, AgeDB-30 98.067, TPR .88334 at
FPR 1e-8; recursive=2 99.833, 98.271, 98.050, .88784. Loss and weight are the paper's (ArcFace, Eq. 5, alpha 7); the
schedule is InsightFace's default for a batch of 512 with a warm-up, as the authors' own is not published.
"""

from easydict import EasyDict

recipe = EasyDict(
    network="vargfacenet",
    variant="authors",
    multiplier=1.25,
    embedding_size=512,
    scale=64.0,
    m2=0.5,
    distillation="angular",
    alpha=7.0,
    generations=2,
    batch_size=512,
    lr=0.1,
    wd=5e-4,
    steps=240_000,
    schedule="step",
    lr_steps=[100_000, 160_000, 220_000],
    warmup_steps=2_000,
)
