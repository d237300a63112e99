"""OpenAI-compatible servers as processes: ``vllm serve`` behind the interface of engines."""
