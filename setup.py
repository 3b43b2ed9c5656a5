"""Maps the top-level plugin folders below the import root `harness` (metadata lives in pyproject.toml)."""

from setuptools import find_packages, setup

MOUNTED = ("methods", "datasets", "protocols", "reports", "presets")

setup(
    packages=find_packages(include=["harness", "harness.*"])
    + [f"harness.{top}" for top in MOUNTED]
    + [f"harness.{top}.{name}" for top in MOUNTED for name in find_packages(top)],
    package_dir={f"harness.{top}": top for top in MOUNTED},
)
