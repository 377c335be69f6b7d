"""The sandbox behaves like WeChat, its faults included."""
