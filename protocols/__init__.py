"""Protocol families, one module each; names of the built-in ones."""

BUILTIN = {
    "complete": "harness.protocols.complete:Complete",
    "fixed_rate": "harness.protocols.fixed_rate:FixedRate",
}
