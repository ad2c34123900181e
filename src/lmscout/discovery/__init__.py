"""Discovery: splits, searches for proxies, explanation, and the design of architectures."""

from lmscout.discovery.assessment import (
    Assessment,
    SignedProxy,
    assess,
    assess_baselines,
    signed_proxy,
)
from lmscout.discovery.design import Design, design
from lmscout.discovery.discover import Discovery, SpaceRanking, discover, rank_space
from lmscout.discovery.explain import Explanation, explain
from lmscout.discovery.rank import RankResult, rank_proxies
from lmscout.discovery.scorer import Split, split_benchmark
from lmscout.discovery.selection import Selection, pick

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
