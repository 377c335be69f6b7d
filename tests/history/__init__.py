"""Several brokers on one database under faults: what was seen, and a checker that judges it."""
