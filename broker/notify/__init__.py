"""Tells people when a person is needed."""
