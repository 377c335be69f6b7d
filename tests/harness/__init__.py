"""What tests use and is no test: doubles, processes, browsers, databases."""
