"""Discovery in the deep space: engines that ask, a screen that judges, a run that records."""
