"""The keeper, the registry, tickets, restarts and outages: state over time."""
