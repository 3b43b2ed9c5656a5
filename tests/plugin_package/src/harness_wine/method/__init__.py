"""A vote of one classifier per modality, weighted by learned reliability."""
