"""The daemon's routes for programs."""
