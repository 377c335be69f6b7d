"""What holds state over time: one keeper per app, the one place where a refresh happens, and the registry of all apps."""
