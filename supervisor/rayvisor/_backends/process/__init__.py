"""OS processes: trees, proof that they are gone, the reaper and the node agent. Knows nothing of Ray."""
