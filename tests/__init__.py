"""Tests of token-broker, named by feature."""
