"""MSP: modality-specific prompts (ICASSP 2024)."""
