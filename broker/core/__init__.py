"""What is decided, without I/O: tokens, quota, error codes, and the ports the keeper needs."""
