"""Connections: caps, deadlines, the fast path, long polls."""
