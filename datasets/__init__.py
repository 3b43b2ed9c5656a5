"""Data set plugins, one module each; names of the built-in ones."""

BUILTIN = {
    "openmoji": "harness.datasets.openmoji:OpenMojiConfig",
    "openmoji_subgroup": "harness.datasets.openmoji:OpenMojiSubgroupConfig",
    "cdda": "harness.datasets.cdda:CddaConfig",
    "tuxpaint_stamps": "harness.datasets.tuxpaint_stamps:TuxpaintStampsConfig",
    "av_digits": "harness.datasets.av_digits:AvDigitsConfig",
    "mfeat": "harness.datasets.mfeat:MfeatConfig",
    "synthetic": "harness.datasets.synthetic:SyntheticConfig",
    "folder": "harness.datasets.folder:FolderConfig",
}
