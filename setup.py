"""Package `vargface`: the folders stay at the top of the tree, the import names stay under one roof."""

import re
from pathlib import Path

from setuptools import setup

PACKAGE_DIR = {
    "vargface": "src/vargface",
    "vargface.commands": "src/vargface/commands",
    "vargface.data": "src/vargface/data",
    "vargface.data.check": "src/vargface/data/check",
    "vargface.data.synthetic": "src/vargface/data/synthetic",
    "vargface.deploy": "src/vargface/deploy",
    "vargface.jobs": "src/vargface/jobs",
    "vargface.study": "src/vargface/study",
    "vargface.training": "src/vargface/training",
    "vargface.teachers": "src/vargface/teachers",
    "vargface.symbols": "symbols",
    "vargface.eval": "eval",
    "vargface.eval.lfr": "eval/lfr",
    "vargface.recipes": "recipes",
    "vargface.recipes.study": "recipes/study",
}

# MXNet is an extra: `mxnet` and `mxnet-cu112` own the same folder, so exactly one of `cpu` and `cu112` is wanted
INSTALL_REQUIRES = [
    # MXNet 1.9.1 uses names that numpy 1.24 took away (runtime.py gives them back) and an ABI that numpy 2 left
    "numpy>=1.23,<2",
    "opencv-python-headless>=4.5,<5",
    "joblib>=1.2",
    "scipy>=1.7",
    "matplotlib>=3.5",
    "tensorboardX>=2.6",
    "easydict>=1.9",
    "tqdm>=4.60",
]

EXTRAS_REQUIRE = {
    "cpu": ["mxnet==1.9.1"],
    # the wheel holds no CUDA libraries; these are the ones it was linked against, loaded by runtime.py before MXNet
    "cu112": [
        "mxnet-cu112==1.9.1",
        "nvidia-cuda-runtime-cu11==11.8.89",
        "nvidia-cuda-nvrtc-cu11==11.8.89",
        "nvidia-cublas-cu11==11.11.3.6",
        "nvidia-cudnn-cu11==8.9.6.50",
        "nvidia-cufft-cu11==10.9.0.58",
        "nvidia-curand-cu11==10.3.0.86",
        "nvidia-cusolver-cu11==11.4.1.48",
        "nvidia-nccl-cu11==2.19.3",
        "nvidia-nvtx-cu11==11.8.86",
    ],
    # sympy, ml_dtypes: ONNX Runtime's quantiser imports them and does not say so; onnx 1.17 is the last that takes
    # protobuf 3, whose old Python interface MXNet 1.9.1's exporter (the benchmark's baseline) needs
    "export": [
        "onnx>=1.16,<1.18",
        "onnxruntime>=1.19",
        "protobuf>=3.20.2,<4",
        "sympy>=1.12",
        'ml_dtypes>=0.4 ; python_version >= "3.9"',
    ],
    # scikit-learn: a benchmark's classifier of raw pixels; setuptools and wheel: the packaging test builds offline
    "dev": [
        "pytest>=7",
        "hypothesis>=6",
        "ruff>=0.6",
        "vermin>=1.6",
        "scikit-learn>=1.0",
        "setuptools>=70.1,<81",
        "wheel>=0.40",
    ],
}

HERE = Path(__file__).resolve().parent

setup(
    name="vargface",
    version=re.search(r'__version__ = "(.+)"', (HERE / "src/vargface/__init__.py").read_text(encoding="utf-8"))[1],
    description="VarGFaceNet: face recognition at 1 GFLOP, distilled from a large teacher, on Apache MXNet",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["face recognition", "knowledge distillation", "VarGFaceNet", "ArcFace", "InsightFace", "MXNet"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.8,<3.12",
    package_dir=PACKAGE_DIR,
    packages=list(PACKAGE_DIR),
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["vargface = vargface.__main__:run"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.8",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
