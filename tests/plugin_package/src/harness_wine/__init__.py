"""Example plugins for missing-modality-harness."""
