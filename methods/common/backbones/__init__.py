"""Backbones; names of the built-in ones."""

BUILTIN = {
    "fusion": "harness.methods.common.backbones.config:FusionConfig",
    "vilt_b32": "harness.methods.common.backbones.config:ViltB32Config",
    "vilt_b32_patches": "harness.methods.common.backbones.patches_config:ViltB32PatchesConfig",
}
