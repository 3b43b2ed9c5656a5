"""Our stages beside a peer that costs what the released REDEEM pipeline costs; run by `benchmarks/compare.py`."""
