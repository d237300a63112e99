"""The runtime: carries the core's effects out and feeds their results back as events."""
