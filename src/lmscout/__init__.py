"""Judge language-model architectures cheaply: discover proxies, prune with a predictor."""

from lmscout.registration import register_when_imported

__version__ = "0.1.0"

# Saved models of this package load through transformers' Auto classes once both are imported.
register_when_imported()
