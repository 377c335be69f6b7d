"""The adapter to WeChat's token endpoints: answers, TLS, deadlines, faults."""
