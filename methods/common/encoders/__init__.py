"""Frozen encoders; names of the built-in ones."""

BUILTIN = {
    "identity": "harness.methods.common.encoders.config:IdentityConfig",
    "minilm": "harness.methods.common.encoders.config:MiniLMConfig",
    "efficientnet_lite0": "harness.methods.common.encoders.config:EfficientNetLite0Config",
    "clip_vit_l14_336": "harness.methods.common.encoders.config:ClipConfig",
    "vilt_text": "harness.methods.common.backbones.config:ViltTextConfig",
    "vilt_image": "harness.methods.common.backbones.config:ViltImageConfig",
}
