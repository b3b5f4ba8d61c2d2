"""Packaging; the program is run from its checkout (see README.md)."""

from setuptools import setup

setup(
    name="co2net",
    version="0.1.0",
    description="Weakly supervised temporal action localization: CO2-Net, its evaluation, and its protocols",
    license="MIT",
    python_requires=">=3.10",
    py_modules=[],
    packages=[],  # nothing is installed: the code runs from its checkout, this lists what it needs
    install_requires=[
        "torch>=2.6,<3",
        "numpy>=1.26,<3",
        "h5py>=3.10,<4",
        "PyYAML>=6,<7",
        "tqdm>=4.66,<5",
        "filelock>=4.1,<5",
        "tensorboard>=2.16,<3",
        "matplotlib>=3.8,<4",
        "plotly>=7,<8",
        "jinja2>=3.1,<4",
        "pandas>=2.2,<4",
        "orjson>=3.10,<4",
        "pyarrow>=17",
        "scipy>=1.11",
        "tabulate>=0.9",
    ],
    extras_require={
        "video": ["av>=15", "torchvision>=0.21", "opencv-contrib-python-headless>=4.10"],  # scripts/extract_features.py
        "onnx": ["onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.3"],  # scripts/export.py
        "cluster": ["submitit>=1.5"],  # scripts/reproduce.py --slurm
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ipykernel>=6.29",  # these three run docs/tutorial.ipynb
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ruff>=0.15",
            "selenium>=4.51,<5",
            "submitit>=1.5",
        ],
    },
)
