"""Measurements: `python -m tests.bench` prints tables; `--brief` only proves that every row runs and is right."""
