"""The proxy for WeChat's data interfaces: what passes, what is refused, and who may call."""
