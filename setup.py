"""Maps the top-level plugin folders below the import root `harness` (metadata lives in pyproject.toml)."""

from setuptools import find_namespace_packages, setup

MOUNTED = ("methods", "datasets", "protocols", "reports", "presets")


def below(folder: str) -> list[str]:
    """Packages and folders of data (cards, presets) alike: what is named here is not warned of."""
    return find_namespace_packages(folder, exclude=["*__pycache__*"])


setup(
    packages=["harness", *(f"harness.{name}" for name in below("harness"))]
    + [f"harness.{top}" for top in MOUNTED]
    + [f"harness.{top}.{name}" for top in MOUNTED for name in below(top)],
    package_dir={f"harness.{top}": top for top in MOUNTED},
)
