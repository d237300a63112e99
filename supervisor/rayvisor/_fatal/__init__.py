"""Errors after which a process is of no use any more: finding them, and ending it."""
