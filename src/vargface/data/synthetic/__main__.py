"""`python -m vargface.data.synthetic --sheet FILE`: a contact sheet of synthetic faces."""

from __future__ import annotations

import argparse

import cv2

from vargface.data.synthetic.dataset import contact_sheet
from vargface.files import whole_file


def main() -> None:
    """Write the contact sheet that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m vargface.data.synthetic",
        description="Draw a contact sheet of synthetic faces: a row per person, a column per kind of view.",
        epilog="example: python -m vargface.data.synthetic --sheet docs/images/synthetic_faces.jpg --identities 8",
    )
    parser.add_argument("--sheet", required=True, metavar="FILE.jpg", help="where to write it (JPEG)")
    parser.add_argument("--identities", type=int, default=8, help="rows (default 8)")
    parser.add_argument("--first", type=int, default=0, help="number of the first person (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the population (default 0)")
    options = parser.parse_args()
    sheet = contact_sheet(options.identities, seed=options.seed, first=options.first)
    with whole_file(options.sheet) as file:
        file.write(cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())


if __name__ == "__main__":
    main()
