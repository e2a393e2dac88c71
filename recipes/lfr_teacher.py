"""The teacher for the LFR challenge: LResNet100E-IR, ArcFace, ms1m-retinaface (93,431 identities, 5,179,510 images).

    make train-teacher RECIPE=recipes/lfr_teacher.py DATA=faces_ms1m-retinaface OUT=runs/lfr-teacher

Hardware and time: not yet run. It needs GPUs: at batch 512 a step is 512 x 24.17 GFLOPs forward, three times that
with backward, 37 TFLOPs; 240,000 steps are 512 x 240,000 / 5,179,510 = 23.7 epochs. The schedule is InsightFace's
default for a batch of 512; the authors' own is not published.
Result: not yet run. The challenge published TPR 0.80312 at FPR 1e-8 for its baseline r100fc, which is this recipe with
output="FC".
"""

from easydict import EasyDict

recipe = EasyDict(
    role="teacher",
    network="resnet",
    num_layers=100,
    output="E",
    multiplier=1.0,
    embedding_size=512,
    scale=64.0,
    m2=0.5,
    batch_size=512,
    lr=0.1,
    wd=5e-4,
    steps=240_000,
    schedule="step",
    lr_steps=[100_000, 160_000, 220_000],
)
