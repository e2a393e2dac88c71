"""The paper's claims on synthetic faces: a narrow VarGFaceNet, taught by a ResNet-18 that was trained on such faces.

    vargface synth data/synthetic
    make study STUDY=recipes/study/synthetic.py DATA=data/synthetic TEACHER=runs/synthetic-teacher/gen-2/teacher,2 \\
        OUT=runs/study-synthetic ARGS="--other runs/demo/teacher/teacher,1"

(recipes/synthetic_teacher.py trains the first teacher, `make train-student` the second, weaker one.)

Hardware and time: 2 CPU cores, a training on each; an hour or two for three seeds of all cells, by what was run
(docs/study.md: three seeds of the main ones, one of the others).

300 steps x 32 images = 9,600, one epoch a generation.
"""

from easydict import EasyDict

from vargface.recipes.study._claims import COMPARISONS, MAIN
from vargface.recipes.study._claims import cells as cells_of

recipe = EasyDict(
    network="vargfacenet",
    multiplier=0.25,
    embedding_size=128,
    residual_gamma=0.2,
    scale=16.0,
    m2=0.1,
    alpha=7.0,
    batch_size=32,
    steps=300,
    lr=0.1,
    schedule="cosine",
    warmup_steps=30,
    log_every=20,
    report=False,
    context="cpu",
)
cells, main, comparisons = cells_of(recipe.steps), MAIN, COMPARISONS
