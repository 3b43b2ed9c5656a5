"""Nearest-neighbour imputation of missing modalities."""
