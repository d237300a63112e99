"""The vLLM engine. The only place that imports vllm, and only once an engine is started."""
