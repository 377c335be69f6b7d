"""The operating system: clocks, sockets, systemd, the log."""
