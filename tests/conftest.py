"""What holds for the whole suite.

`plugin_package` has tests of its own, which need it installed; `unit/test_plugin_package.py` runs them.
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import registry
from harness.config import PathsConfig
from harness.files import Folders
from harness.mlflow_store import connect

collect_ignore = ["plugin_package"]

# Started in the background of a shell, Python ignores Ctrl-C and so do all its children, which some tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database (seconds to create), made once and copied by the tests that write to one."""
    home = tmp_path_factory.mktemp("mlflow")
    connect(f"sqlite:///{home / 'mlflow.db'}", Folders.resolve(PathsConfig(home=str(home))))
    return home / "mlflow.db"


@pytest.fixture(autouse=True)
def restored_registries() -> Iterator[None]:
    """Forgets what a test has registered."""
    before = {}
    for kind, plugins in registry.KINDS.items():
        plugins.names()
        before[kind] = (dict(plugins._entries), dict(plugins._loaded))
    yield
    for kind, plugins in registry.KINDS.items():
        plugins._entries, plugins._loaded = before[kind]
    for name in [name for name in sys.modules if name.startswith("harness_plugin_")]:
        del sys.modules[name]
