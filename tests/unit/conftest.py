from pathlib import Path

import pytest

from harness.config import PathsConfig
from harness.files import Folders
from harness.mlflow_store import connect


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database (seconds to create), made once and copied by the tests that write to one."""
    home = tmp_path_factory.mktemp("mlflow")
    connect(f"sqlite:///{home / 'mlflow.db'}", Folders.resolve(PathsConfig(home=str(home))))
    return home / "mlflow.db"


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
