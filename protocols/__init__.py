"""Protocol families, one module each; names of the built-in ones."""

BUILTIN = {
    "complete": "harness.protocols.complete:Complete",
    "concat": "harness.protocols.concat:Concat",
    "corruption": "harness.protocols.changed:Corruption",
    "every_pattern": "harness.protocols.patterns:Patterns",
    "fixed_rate": "harness.protocols.fixed_rate:FixedRate",
    "independent_rates": "harness.protocols.rates:Rates",
    "natural": "harness.protocols.natural:Natural",
    "not_at_random": "harness.protocols.not_at_random:NotAtRandom",
    "table": "harness.protocols.table:SavedTable",
    "train_test": "harness.protocols.train_test:TrainTest",
    "within_modality": "harness.protocols.changed:Within",
}
