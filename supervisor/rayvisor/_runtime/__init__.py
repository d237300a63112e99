"""The runtime: it carries out the effects of the core, and returns their results as events."""
