"""Subnetworks: units of a model in order, plans of what to keep, and what a plan computes."""
