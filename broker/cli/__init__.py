"""The commands: what `token-broker …` does, each loading only what it needs."""
