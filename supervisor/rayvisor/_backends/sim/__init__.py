"""A simulated engine: real processes, no model. For tests, demonstrations and many-engine runs.

It has the process tree of a vLLM engine (an EngineCore below the host, a Worker below that), dies of the
same signals, and behaves as vLLM does where requests are moved from one engine to another: greedy
tokens are a function of the token sequence alone, seeded ones also of how many tokens were sampled in
this run, penalties count only what this run put out, and characters are split between tokens.
"""
