"""The companion: its routes, its cached list, its pictures, and what it answers when it cannot."""
