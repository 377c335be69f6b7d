"""Daemons as processes: crashes, kills at chosen and random moments, several hosts."""
