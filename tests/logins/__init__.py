"""Tests of broker/logins."""
