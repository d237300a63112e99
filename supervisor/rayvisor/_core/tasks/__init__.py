"""Ray tasks under a policy: what is decided about them, apart from Ray."""
