"""Conformance kits: what a new part of lmscout has to pass, as plain functions."""

from lmscout.testing.engines import check_engine
from lmscout.testing.families import check_family
from lmscout.testing.reference_models import random_model

__all__ = ["check_engine", "check_family", "random_model"]
