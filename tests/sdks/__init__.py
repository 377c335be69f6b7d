"""WeChat's SDKs, each in a process of its own, built by the very code that deploy/sdk/README.md shows."""
