from pathlib import Path
from typing import Any

import pytest

from harness.config import PathsConfig
from harness.files import Folders
from harness.method import MethodContext
from harness.types import DatasetSpec, FeatureSpec, ModalitySpec, TaskSpec


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Folders below a temporary home."""
    return Folders.resolve(PathsConfig(home=str(tmp_path / "home with space")))


@pytest.fixture
def uri(folders: Folders, mlflow_template: Path) -> str:
    """Tracking URI of an empty MLflow database in the temporary home."""
    folders.home.mkdir(parents=True, exist_ok=True)
    (folders.home / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    return f"sqlite:///{folders.home / 'mlflow.db'}"


@pytest.fixture
def iemocap() -> MethodContext:
    """Modalities and feature sizes of IEMOCAP as released, for published parameter counts; there is no backbone."""

    def refuse() -> Any:
        raise AssertionError("feature methods build no backbone")

    spec = DatasetSpec(
        "sizes",
        "1",
        (ModalitySpec("audio", "audio"), ModalitySpec("video", "video"), ModalitySpec("text", "text")),
        TaskSpec("multiclass", 4, ("a", "b", "c", "d"), "accuracy"),
        "",
        "",
        "",
    )
    features = {
        "audio": FeatureSpec(60, (130,), 130),
        "video": FeatureSpec(50, (342,), 342),
        "text": FeatureSpec(22, (1024,), 1024),
    }
    return MethodContext(spec, features, refuse)
