"""The engine side, which runs inside a host actor. Imports neither ray nor vllm."""
