"""Helpers that are no tests: doubles, processes, servers, browsers, databases."""
