"""Discovery: the protocol of splits, the engines, and what a run leaves behind."""

from lmscout.discovery.assessment import Assessment, assess, assess_baselines
from lmscout.discovery.discover import Discovery, discover
from lmscout.discovery.exhaustive import SpaceRanking, rank_space
from lmscout.discovery.explain import Explanation, explain
from lmscout.discovery.judge import Judgement, judge
from lmscout.discovery.splits import Split, split_benchmark

__all__ = [
    "Assessment",
    "Discovery",
    "Explanation",
    "Judgement",
    "SpaceRanking",
    "Split",
    "assess",
    "assess_baselines",
    "discover",
    "explain",
    "judge",
    "rank_space",
    "split_benchmark",
]
