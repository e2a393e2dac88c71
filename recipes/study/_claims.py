"""The cells that both studies have, one for each claim of the paper and each choice of ours; no study by itself.

A cell says in what it differs from the study's recipe: Eq. 5 with weight 7, the teacher looked up in a store (float16;
in the loop it is asked in float32). Cells of several generations have a row a generation.
"""

from __future__ import annotations

UNTAUGHT = {"teacher": "", "teacher_store": ""}
MAIN = ["Eq. 5, alpha 7", "no distillation", "Eq. 4", "cosine", "twice the steps", "three times the steps"]
COMPARISONS = [
    ("Eq. 5, alpha 7", "no distillation", "distillation"),
    ("Eq. 5, alpha 7, generation 2", "Eq. 5, alpha 7", "a second generation"),
    ("Eq. 5, alpha 7, generation 3", "Eq. 5, alpha 7, generation 2", "a third generation"),
    ("Eq. 5, alpha 7, generation 2", "twice the steps", "generations against one long run, 2x"),
    ("Eq. 5, alpha 7, generation 3", "three times the steps", "generations against one long run, 3x"),
    ("Eq. 5, alpha 7, generation 3", "no distillation, generation 3", "distillation, three generations"),
    ("Eq. 5, alpha 7", "Eq. 4", "Eq. 5 against Eq. 4"),
    ("Eq. 5, alpha 7", "cosine", "Eq. 5 against cosine"),
    ("Eq. 5, alpha 1", "Eq. 5, alpha 7", "weight 1 against 7"),
    ("Eq. 5, alpha 30", "Eq. 5, alpha 7", "weight 30 against 7"),
    ("Eq. 5, alpha 100", "Eq. 5, alpha 7", "weight 100 against 7"),
    ("Eq. 5, alpha 7", "variant insightface", "SE, and fc1 with a free scale"),
    ("Eq. 5, alpha 7", "asked in the loop", "store in float16 against loop in float32"),
    ("asked in the loop", "another teacher", "this teacher against the other"),
]


def cells(steps: int) -> dict[str, dict]:
    """Return row -> the keys in which it differs from a recipe of `steps` steps a generation."""
    return {
        "Eq. 5, alpha 7": {"alpha": 7.0, "generations": 3},
        "no distillation": {**UNTAUGHT, "generations": 3},
        "Eq. 5, alpha 1": {"alpha": 1.0},
        "Eq. 5, alpha 30": {"alpha": 30.0},
        "Eq. 5, alpha 100": {"alpha": 100.0},
        "Eq. 4": {"distillation": "shrink"},
        "cosine": {"distillation": "cosine"},
        "twice the steps": {"steps": 2 * steps},
        "three times the steps": {"steps": 3 * steps},
        "variant insightface": {"variant": "insightface"},
        "asked in the loop": {"teacher_store": ""},
        "another teacher": {"teacher": "{other}", "teacher_store": ""},
    }
