"""Pruning: families, importance, plans, measuring, learning, searching, saving."""
