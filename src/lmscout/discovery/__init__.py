"""Discovery: the protocol of splits, the engines, and what a run leaves behind."""

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
from lmscout.discovery.rank import Judgement, judge
from lmscout.discovery.selection import Picking, pick
from lmscout.discovery.splits import Split, split_benchmark

__all__ = [
    "Assessment",
    "Design",
    "Discovery",
    "Explanation",
    "Judgement",
    "Picking",
    "SignedProxy",
    "SpaceRanking",
    "Split",
    "assess",
    "assess_baselines",
    "design",
    "discover",
    "explain",
    "judge",
    "pick",
    "rank_space",
    "signed_proxy",
    "split_benchmark",
]
