"""Recovery: training after pruning, of one cut model or of all plans at once."""
