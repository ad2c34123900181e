"""Discovery: splits, searches for proxies, explanation, and the design of architectures."""

from lmscout.discovery.assessment import (
    Assessment,
    SignedProxy,
    assess,
    assess_baselines,
    signed_proxy,
)
from lmscout.discovery.design import Design, design
from lmscout.discovery.discover import Discovery, discover
from lmscout.discovery.exhaustive import SpaceRanking, rank_space
from lmscout.discovery.explain import Explanation, explain
from lmscout.discovery.rank import RankResult, rank_proxies
from lmscout.discovery.selection import Selection, pick
from lmscout.discovery.splits import Split, split_benchmark

__all__ = [
    "Assessment",
    "Design",
    "Discovery",
    "Explanation",
    "RankResult",
    "Selection",
    "SignedProxy",
    "SpaceRanking",
    "Split",
    "assess",
    "assess_baselines",
    "design",
    "discover",
    "explain",
    "pick",
    "rank_proxies",
    "rank_space",
    "signed_proxy",
    "split_benchmark",
]
