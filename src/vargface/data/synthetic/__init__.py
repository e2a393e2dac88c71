"""Synthetic faces: seeded people, photographed by seeded accidents; nothing is downloaded.

A person (`identity`) is about 60 numbers; a picture (`view`) is pose, expression, age, light, camera and things in the
way; `head` is the surface, `paint` and `hair` its colours, `draw` the picture; `dataset` writes the folder to train on.
"""

from vargface.data.synthetic.dataset import contact_sheet, make_dataset, person, picture, progress_bar
from vargface.data.synthetic.draw import render, render_jpeg
from vargface.data.synthetic.identity import Identity
from vargface.data.synthetic.view import View

__all__ = [
    "Identity",
    "View",
    "contact_sheet",
    "make_dataset",
    "person",
    "picture",
    "progress_bar",
    "render",
    "render_jpeg",
]
