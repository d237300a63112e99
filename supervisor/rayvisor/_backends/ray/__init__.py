"""The only place that imports ray, and only when it is used: ``import rayvisor`` never pays for it."""
