"""Contract tests that every plugin inherits, here for packages of others too.

Derive from a contract and name your plugin::

    from harness.testing.protocols import ProtocolContract


    class TestMine(ProtocolContract):
        protocol = "mine_0.5"

Needs pytest.  Plugins given by file are loaded with `harness.registry.load_plugin_file` in a `conftest.py`.
"""

import sys

if "pytest" in sys.modules:  # failing asserts of the contracts then show their values
    sys.modules["pytest"].register_assert_rewrite(
        *(f"harness.testing.{name}" for name in ("protocols", "datasets", "metrics", "methods"))
    )
