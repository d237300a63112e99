"""Requests to a pool of engines: pure decisions, no event loop, no clock, no I/O."""
