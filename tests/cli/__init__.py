"""The commands as a user types them: output, exit codes, errors in sentences."""
