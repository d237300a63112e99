"""The demo: a real engine is killed mid-stream, and no token is lost."""
