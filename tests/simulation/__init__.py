"""Simulated weeks of brokers, clients and faults, on a manual clock."""
