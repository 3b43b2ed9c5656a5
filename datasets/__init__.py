"""Data set plugins, one module each; names of the built-in ones."""

BUILTIN = {
    "openmoji": "harness.datasets.openmoji:OpenMojiConfig",
    "openmoji_subgroup": "harness.datasets.openmoji:OpenMojiSubgroupConfig",
    "cdda": "harness.datasets.cdda:CddaConfig",
    "tuxpaint_stamps": "harness.datasets.tuxpaint_stamps:TuxpaintStampsConfig",
    "av_digits": "harness.datasets.av_digits:AvDigitsConfig",
    "mfeat": "harness.datasets.mfeat:MfeatConfig",
    "iemocap": "harness.datasets.iemocap:IemocapConfig",
    "msp_improv": "harness.datasets.msp_improv:MspImprovConfig",
    "cmu_mosi": "harness.datasets.cmu_mosi:CmuMosiConfig",
    "cmu_mosei": "harness.datasets.cmu_mosei:CmuMoseiConfig",
    "ch_sims": "harness.datasets.ch_sims:ChSimsConfig",
    "mer2024": "harness.datasets.mer2024:Mer2024Config",
    "mmimdb": "harness.datasets.mmimdb:MmimdbConfig",
    "hateful_memes": "harness.datasets.hateful_memes:HatefulMemesConfig",
    "food101": "harness.datasets.food101:Food101Config",
    "synthetic": "harness.datasets.synthetic:SyntheticConfig",
    "folder": "harness.datasets.folder:FolderConfig",
}
