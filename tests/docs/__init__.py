"""README and guides: what they say is true, alike in both languages, and runs."""
