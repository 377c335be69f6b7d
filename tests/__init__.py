"""The tests, in rooms that mirror broker/; SCENARIOS.md lists what they try."""
