"""Cells of published tables as runs: one YAML file each, read by `harness.reports.presets`."""

from pathlib import Path

FOLDER = Path(__file__).parent
