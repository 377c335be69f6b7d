"""What holds state over time.

One keeper per app, the one place where a refresh happens, and the registry of all apps.
"""
