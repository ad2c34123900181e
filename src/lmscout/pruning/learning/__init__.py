"""Learning: what measured pairs say about plans that were not measured."""
