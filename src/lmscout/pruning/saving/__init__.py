"""Saving: a plan as a model of its own, in a folder that others load."""
