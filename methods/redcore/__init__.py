"""RedCore (AAAI 2024)."""
