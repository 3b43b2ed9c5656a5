"""RAMER (arXiv 2410.02804)."""
