"""What the asyncio side of a pool is made of: streams to readers, orders to engines."""
