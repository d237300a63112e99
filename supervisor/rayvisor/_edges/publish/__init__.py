"""Records for the outside, on a ZeroMQ PUB socket: the only place where zmq is imported."""
