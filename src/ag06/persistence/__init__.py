"""The log: what is stored, where, and how it is handed out."""
