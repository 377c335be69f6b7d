"""WeChat's SDKs in processes of their own, set up by the code that deploy/sdk/README.md shows."""
