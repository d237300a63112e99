"""Benchmarks: ``python -m benchmarks NAME [--json]``, each beside its peer where it has one."""
