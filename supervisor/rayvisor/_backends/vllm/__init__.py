"""The vLLM engine. Only this package imports vllm, and only once an engine is started."""
