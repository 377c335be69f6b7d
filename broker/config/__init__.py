"""The configuration: what may be written, how it is read, and what is wrong with it."""
