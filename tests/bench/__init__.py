"""Measurements: `python -m tests.bench` prints tables; with `--brief` each row only runs once."""
