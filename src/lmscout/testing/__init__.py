"""Conformance kits for new model families and search engines, as plain functions."""

from lmscout.testing.engines import check_engine
from lmscout.testing.families import check_family, random_model

__all__ = ["check_engine", "check_family", "random_model"]
