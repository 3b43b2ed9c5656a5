"""Leaderboard, statistics and renderers over run records; never imports torch."""
