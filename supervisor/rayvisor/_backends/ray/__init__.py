"""The only package that imports Ray, and only when it is used: ``import rayvisor`` does not import it."""
