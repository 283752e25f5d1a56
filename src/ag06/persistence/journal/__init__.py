"""The journal: where events wait, durably, while a remote store cannot take them."""
