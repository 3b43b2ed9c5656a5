"""MAP: missing-aware prompts (CVPR 2023)."""
