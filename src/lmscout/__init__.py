"""Judge language-model architectures cheaply: discover proxies, prune with a predictor."""

__version__ = "0.1.0"
