"""A simulated engine: real processes, no model. For tests, demonstrations and many-engine runs.

It has the process tree of a vLLM engine (an EngineCore below the host, a Worker below that) and dies of the
same signals. Where requests move from one engine to another, it behaves as vLLM does: greedy tokens are a
function of the token sequence alone, seeded ones also of the number of tokens sampled in this run, penalties
count only the output of this run, and characters are split between tokens.
"""
