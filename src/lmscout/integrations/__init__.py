"""Leaf modules for other tools, each imported from one place alone and only when it is used."""
