"""What all tests share: hypothesis without a deadline, since the machines are shared and noisy."""

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
