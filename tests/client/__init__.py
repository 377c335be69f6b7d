"""The client library and its SDK adapters, against a real daemon."""
