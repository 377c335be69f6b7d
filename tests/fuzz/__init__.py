"""Random input: at the API, at the proxy, and as WeChat's answers."""
