"""Generations 3 and 4 of real_mini_student: by distillation alone, at a lower rate; the best student of those photos.

    make train-student RECIPE=recipes/real_mini_student.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini ARGS="generations=2"
    make train-student RECIPE=recipes/real_mini_distill.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini-3 ARGS="init=runs/real-mini/gen-2/student,4"
    make train-student RECIPE=recipes/real_mini_distill.py DATA=../shared/faces/real-mini \\
        TEACHER=../shared/faces/insightface-y1/model,0 OUT=runs/real-mini-4 ARGS="init=runs/real-mini-3/student,4"

Hardware and time: 2 CPU cores; 2 h each of the last two, on one core. Result (docs/results.md): generation 3 mini_ff
91.33, mini_fp 88.50, generation 4 92.92 and 90.00; the teacher has 95.25 and 93.00.

6,000 steps x 16 images = 96,000 a generation; the teacher alone says where each of them lies, not the margin loss,
which knows but the 299 people of the photos (that this is what helps, and not the steps, was not shown).
"""

from easydict import EasyDict

from vargface.recipes.real_mini_student import recipe as generation

recipe = EasyDict({**generation, "margin_ramp": [generation.steps, generation.steps], "lr": 2e-3})
