"""Recovery: training that makes up for what was cut, of one cut model or of all plans at once."""
