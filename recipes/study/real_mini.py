"""The paper's claims on photos: a narrow VarGFaceNet from real-mini, taught by InsightFace's MobileFaceNet y1.

    make study STUDY=recipes/study/real_mini.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/study-real-mini \\
        ARGS="--other runs/real-mini-4/student,4"

Hardware and time: 2 CPU cores, a training on each; two to four hours for three seeds of all cells, by what was
run (docs/study.md: three seeds of the main ones, one of the others).

600 steps x 32 images = 19,200, not quite two epochs a generation; three of them, and the longest cells, 5.4. Nothing is
augmented, so that all cells but two look the teacher up in a store.
"""

from easydict import EasyDict

from vargface.recipes.study._claims import COMPARISONS, MAIN
from vargface.recipes.study._claims import cells as cells_of

recipe = EasyDict(
    network="vargfacenet",
    multiplier=0.25,
    embedding_size=128,
    residual_gamma=0.2,
    scale=32.0,
    m2=0.3,
    alpha=7.0,
    batch_size=32,
    steps=600,
    lr=0.1,
    schedule="cosine",
    warmup_steps=50,
    log_every=20,
    report=False,
    context="cpu",
)
cells = {**cells_of(recipe.steps), "ArcFace from the middle on": {"margin_ramp": [200, 400]}}
main = MAIN
comparisons = [*COMPARISONS, ("ArcFace from the middle on", "Eq. 5, alpha 7", "distillation first")]
