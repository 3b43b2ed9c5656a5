"""Imputation of missing modalities by a denoising autoencoder."""
