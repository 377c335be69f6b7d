"""The proxy: calls to WeChat's other interfaces with the app's token."""
