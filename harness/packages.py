"""Data and weights that installed packages carry: found without running the package, checked before they are read."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from harness.errors import DataError, DependencyError
from harness.files import file_sha256

INSTALL = "pip install 'missing-modality-harness[demo]'"


def package_version(distribution: str, pinned: str, install: str = INSTALL) -> str:
    """Installed version of a distribution, which must be `pinned` or a patch of it (`0.5` admits `0.5.1`).

    Args:
        distribution: Name on the package index.
        pinned: Version; empty admits any, for files whose content alone is checked.
        install: The command that installs it, for messages.

    Raises:
        DependencyError: If it is not installed.
        DataError: If it has another version.
    """
    try:
        found = version(distribution)
    except PackageNotFoundError:
        raise DependencyError(f"{distribution} is not installed; get it with: {install}") from None
    if pinned and found != pinned and not found.startswith(pinned + "."):
        raise DataError(f"{distribution} {found} is installed, but {pinned} is needed; get it with: {install}")
    return found


def package_folder(distribution: str, pinned: str, module: str, install: str = INSTALL) -> Path:
    """Folder of an installed package of a pinned version; the package is not imported.

    Args:
        distribution: Name on the package index.
        pinned: See `package_version`.
        module: Its import name.
        install: See `package_version`.

    Raises:
        DependencyError: If it is not installed.
        DataError: If it has another version.
    """
    package_version(distribution, pinned, install)
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise DependencyError(f"{distribution} {pinned} is damaged; reinstall it: {install} --force-reinstall")
    return Path(spec.origin).parent


def package_file(
    distribution: str, pinned: str, module: str, relative: str, sha256: str, install: str = INSTALL
) -> Path:
    """Path of a file inside an installed package, after checking version and content.

    Args:
        distribution: Name on the package index.
        pinned: See `package_version`.
        module: Its import name.
        relative: Path inside the package.
        sha256: Of the file.
        install: See `package_version`.

    Raises:
        DependencyError: If the package is not installed.
        DataError: If its version or the file's content is another one.
    """
    path = package_folder(distribution, pinned, module, install) / relative
    actual = file_sha256(path) if path.is_file() else "none (no such file)"
    if actual != sha256:
        raise DataError(
            f"{path} is not the published file: its sha256 is {actual[:19]}, not {sha256[:16]}…; "
            f"reinstall it: {install} --force-reinstall"
        )
    return path
