"""The store of one host: a SQLite file, its lock, and its clocks over a reboot."""
