"""What users install: only the import root `harness`, with its data files, editable or not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOUNTED = ("methods", "datasets", "protocols", "reports", "presets")
DATA_SUFFIXES = {".md", ".j2", ".json", ".csv", ".yaml", ".css", ".js", ".typed"}
#: `pip` in these tests must not look at the network, nor at where the user told it to look.
PIP = [sys.executable, "-P", "-m", "pip", "--isolated", "--disable-pip-version-check"]

checkout = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")
pytestmark = checkout


def sources() -> set[str]:
    """Files of the source tree that a wheel must have, by their path in it."""
    found = set()
    for top in ("harness", *MOUNTED):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in {".py", *DATA_SUFFIXES} or path.name == "py.typed":
                inside = path.relative_to(ROOT).as_posix()
                found.add(inside if top == "harness" else f"harness/{inside}")
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git knows or would add, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("tree")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the tree."""
    out = tmp_path_factory.mktemp("wheel")
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(tree)]
    subprocess.run(build, check=True, cwd=out)
    (file,) = out.glob("*.whl")
    return file


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_only_harness_can_be_imported(tmp_path: Path) -> None:
    program = (
        f"import importlib.util, {', '.join(f'harness.{name}' for name in MOUNTED)}\n"
        f"for name in {MOUNTED}:\n"
        "    spec = importlib.util.find_spec(name)\n"
        f"    assert spec is None or not (spec.origin or '').startswith({str(ROOT)!r}), spec\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, check=True)


def test_the_folders_are_importable_under_harness() -> None:
    for name in MOUNTED:
        spec = find_spec(f"harness.{name}")
        assert spec is not None
        assert Path(spec.origin or "").parent.name == name


def test_transformers_does_not_take_our_datasets_for_hugging_faces(tmp_path: Path) -> None:
    program = (
        "import importlib.util\nfrom transformers.utils import is_datasets_available\n"
        "spec = importlib.util.find_spec('datasets')\n"
        "print(is_datasets_available() == (spec is not None))\n"
        f"print(spec is None or not (spec.origin or '').startswith({str(ROOT)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True"]


def test_the_command_works_from_another_directory(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("harness")
    done = subprocess.run([command, "list", "methods"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "redeem" in done.stdout


def test_every_dependency_is_justified() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    names = {match[0] for text in [*project["dependencies"], *extras] if (match := re.match(r"[\w.-]+", text))}
    rows = (ROOT / "docs" / "dependencies.md").read_text().splitlines()
    justified = {match[1] for row in rows if (match := re.match(r"\| `([\w.-]+)`", row))}
    assert names == justified


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for group in project["optional-dependencies"].values() for text in group)]
    declared = {match[0].lower().replace("_", "-") for text in texts if (match := re.match(r"[\w.-]+", text))}
    owners = packages_distributions()
    undeclared = {}
    for top in ("harness", *MOUNTED):
        for path in (ROOT / top).rglob("*.py"):
            for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
                if name == "harness" or name in sys.stdlib_module_names:
                    continue
                distributions = {owner.lower().replace("_", "-") for owner in owners.get(name, [])}
                if distributions and not distributions & declared:
                    undeclared[name] = path.relative_to(ROOT).as_posix()
    assert undeclared == {}


@pytest.mark.slow
def test_the_wheel_holds_harness_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    assert {name.split("/")[0] for name in names} == {"harness"}
    assert names == sources()


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    program = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-P", "-c", program, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    build = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(folder)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert names_in(again) == names_in(wheel)


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_a_fresh_environment(editable: bool, tree: Path, wheel: Path, tmp_path: Path) -> None:
    """The command runs, our `datasets` stays hidden, and an editable install sees files made later."""
    folder = tmp_path / "env"
    # The dependencies are not under test: they come from this environment by a path file.
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python3.*/site-packages"))
    outer = next(path for path in map(Path, sys.path) if (path / "pip").is_dir())
    what = ["--editable", str(tree)] if editable else [str(wheel)]
    subprocess.run(
        [*PIP, "--python", str(python), "install", "--quiet", "--no-deps", "--no-build-isolation", *what],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(outer)},
    )
    # Names alone are looked up there; its path files, and with them the outer editable install, are not read.
    (site / "zz_outer.pth").write_text(str(outer))
    program = (
        "import importlib.util, harness\n"
        "assert importlib.util.find_spec('methods') is None, 'methods is visible'\n"
        "assert 'harness.methods' and importlib.util.find_spec('harness.methods.redeem.model') is not None\n"
        "print(harness.__file__)"
    )
    done = subprocess.run([python, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tree if editable else folder))
    listed = subprocess.run(
        [folder / "bin" / "harness", "list", "methods"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "redeem" in listed.stdout
    if editable:
        new = tree / "methods" / "brand_new" / "deep" / "__init__.py"
        new.parent.mkdir(parents=True)
        new.write_text("ANSWER = 42\n")
        (new.parent.parent / "__init__.py").write_text("")
        look = "from harness.methods.brand_new.deep import ANSWER; print(ANSWER)"
        seen = subprocess.run([python, "-P", "-c", look], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert seen.stdout.strip() == "42"
