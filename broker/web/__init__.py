"""The edge: who gets in, the API, the probes."""
