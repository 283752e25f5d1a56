"""Durable, observable, self-tuning event workflows for Python asyncio."""
