"""Frozen encoders; names of the built-in ones."""

BUILTIN = {
    "identity": "harness.methods.common.encoders.config:IdentityConfig",
    "minilm": "harness.methods.common.encoders.config:MiniLMConfig",
    "efficientnet_lite0": "harness.methods.common.encoders.config:EfficientNetLite0Config",
    "log_mel": "harness.methods.common.encoders.config:LogMelConfig",
    "speech_embedding": "harness.methods.common.encoders.config:SpeechEmbeddingConfig",
    "clip_vit_l14_336": "harness.methods.common.encoders.config:ClipConfig",
    "vilt_text": "harness.methods.common.backbones.config:ViltTextConfig",
    "vilt_image": "harness.methods.common.backbones.config:ViltImageConfig",
    "vilt_patches": "harness.methods.common.backbones.patches_config:ViltPatchesConfig",
}
