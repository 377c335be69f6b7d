"""Sentences for people about codes and facts, one module per language."""
