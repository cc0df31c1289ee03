"""Packages of the wheel: every folder with an `__init__.py`.

The repository keeps `data/` and `experiments/` beside `metamtl/`. The wheel has both inside it, so that
`python -m metamtl.experiments.train` runs from any folder.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["metamtl", "metamtl.*"]),
        "metamtl.data",
        "metamtl.experiments",
        *(f"metamtl.experiments.{name}" for name in find_packages("experiments")),
    ],
    package_dir={"metamtl.data": "data", "metamtl.experiments": "experiments"},
)
