"""The version of lmscout."""

__version__ = "0.1.0"
