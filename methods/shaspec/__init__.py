"""ShaSpec (CVPR 2023)."""
