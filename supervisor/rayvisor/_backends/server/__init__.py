"""OpenAI-compatible servers as processes: ``vllm serve`` behind the seam that engines have."""
