"""The sub-commands, one module each: `parser(**options)` and `execute(arguments) -> exit code`."""
