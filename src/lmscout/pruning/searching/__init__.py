"""Searching: what plans cost, which are worth measuring, and the best that can be foretold."""
