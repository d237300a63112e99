"""Publishes records on a ZeroMQ PUB socket; the only package that imports zmq."""
