"""Method plugins, one folder each; names of the built-in ones."""

BUILTIN = {
    "redeem": "harness.methods.redeem.config:RedeemConfig",
    "ragpt": "harness.methods.ragpt.config:RagptConfig",
    "map": "harness.methods.map.config:MapConfig",
    "msp": "harness.methods.msp.config:MspConfig",
    "majority": "harness.methods.baselines.config:MajorityConfig",
    "unimodal": "harness.methods.baselines.config:UnimodalConfig",
    "zero_fill": "harness.methods.baselines.config:ZeroFillConfig",
    "mean_fill": "harness.methods.baselines.config:MeanFillConfig",
    "modality_dropout": "harness.methods.baselines.config:ModalityDropoutConfig",
    "late_fusion": "harness.methods.baselines.config:LateFusionConfig",
    "knn_vote": "harness.methods.baselines.config:KnnVoteConfig",
    "complete": "harness.methods.baselines.config:CompleteConfig",
    "mmin": "harness.methods.mmin.config:MminConfig",
    "if_mmin": "harness.methods.if_mmin.config:IfMminConfig",
    "knn_impute": "harness.methods.knn_impute.config:KnnImputeConfig",
    "autoencoder_impute": "harness.methods.autoencoder_impute.config:AutoencoderImputeConfig",
    "shaspec": "harness.methods.shaspec.config:ShaSpecConfig",
    "raml_style": "harness.methods.raml_style.config:RamlStyleConfig",
    "ramer": "harness.methods.ramer.config:RamerConfig",
    "redcore": "harness.methods.redcore.config:RedCoreConfig",
}
