"""Discovery in the deep space: engines that ask, a screen that objectives, a run that records."""
