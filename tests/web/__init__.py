"""The HTTP server: API, long poll, fast path, status page, crowds and intruders."""
