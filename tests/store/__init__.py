"""SQLite and PostgreSQL: one contract for both, and the faults that each may have."""
