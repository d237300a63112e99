"""The engine side: what runs inside a host actor. Imports neither ray nor vllm."""
