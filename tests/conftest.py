"""What holds for the whole suite.

`plugin_package` has tests of its own, which need it installed; `unit/test_plugin_package.py` runs them.
"""

import signal

collect_ignore = ["plugin_package"]

# Started in the background of a shell, Python ignores Ctrl-C and so do all its children, which some tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
