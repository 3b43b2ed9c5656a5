"""`plugin_package` has tests of its own, which need it installed; `unit/test_plugin_package.py` runs them."""

collect_ignore = ["plugin_package"]
