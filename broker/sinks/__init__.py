"""Writes tokens where programs already look."""
