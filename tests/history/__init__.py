"""Several brokers on one database, through everything that can go wrong; what was seen of it; and what must be true of that."""
