"""Package `vargface`: the folders stay at the top of the tree, the import names stay under one roof."""

from setuptools import setup

PACKAGE_DIR = {
    "vargface": "src/vargface",
    "vargface.data": "src/vargface/data",
    "vargface.training": "src/vargface/training",
    "vargface.deploy": "src/vargface/deploy",
    "vargface.symbols": "symbols",
    "vargface.eval": "eval",
    "vargface.recipes": "recipes",
}

setup(
    name="vargface",
    version="0.1.0",
    package_dir=PACKAGE_DIR,
    packages=list(PACKAGE_DIR),
    entry_points={"console_scripts": ["vargface = vargface.cli:main"]},
)
