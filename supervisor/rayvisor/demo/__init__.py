"""The demo: a real engine is killed mid-stream, and nothing is lost."""
