"""Decisions about Ray tasks under a policy, without Ray."""
