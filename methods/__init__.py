"""Method plugins, one folder each; names of the built-in ones."""

BUILTIN = {
    "redeem": "harness.methods.redeem.config:RedeemConfig",
    "majority": "harness.methods.baselines.config:MajorityConfig",
    "unimodal": "harness.methods.baselines.config:UnimodalConfig",
    "zero_fill": "harness.methods.baselines.config:ZeroFillConfig",
    "mean_fill": "harness.methods.baselines.config:MeanFillConfig",
    "modality_dropout": "harness.methods.baselines.config:ModalityDropoutConfig",
    "late_fusion": "harness.methods.baselines.config:LateFusionConfig",
    "knn_vote": "harness.methods.baselines.config:KnnVoteConfig",
    "complete": "harness.methods.baselines.config:CompleteConfig",
}
