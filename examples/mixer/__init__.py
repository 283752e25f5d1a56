"""Real audio through a channel strip, as a workflow with knobs: `python -m examples.mixer --seconds 20`."""
