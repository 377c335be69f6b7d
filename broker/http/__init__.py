"""What the daemon and the companion share of HTTP: problems, host checks, pages, languages."""
