"""Retries: what is decided about them, apart from the waiting."""
