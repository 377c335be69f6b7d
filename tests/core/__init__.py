"""The pure core: decisions, quota, and the parsing of WeChat's answers."""
