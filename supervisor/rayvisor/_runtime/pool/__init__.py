"""Engine pools on an event loop: streams to readers, commands to engines."""
