"""The configuration: keys, sources, secret files, addresses, and how mistakes are reported."""
