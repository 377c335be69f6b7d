"""Connections: how many, for how long, and what is answered before aiohttp parses anything."""
