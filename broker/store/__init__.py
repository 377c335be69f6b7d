"""Where tokens and the ledger live: a SQLite file of this host, or a PostgreSQL database that several hosts share."""
