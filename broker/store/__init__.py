"""Where tokens and the ledger of calls are kept: in a file of one host, or in a shared database."""
