"""The engine: what happens to an event."""
