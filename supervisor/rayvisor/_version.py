"""The version of rayvisor: drivers and workers compare it, metrics and wheels carry it."""

__all__ = ["__version__"]

__version__ = "0.1.0"
