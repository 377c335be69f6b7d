"""The store that several brokers share, in PostgreSQL.

Needs the extra [postgres]; imported where a store.url asks for it.
"""
