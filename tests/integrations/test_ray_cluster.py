"""A Ray cluster of three nodes, one of which is killed, computes what one process does."""

from dataclasses import replace

import pytest
from ray_nodes import alive, three_nodes, wait_for

import lmscout
from lmscout.builtin import corpus_text, tiny_folder
from lmscout.pruning.study import STUDY

CALIBRATION = lmscout.CalibrationConfig(
    measured_tokens=1500, final_tokens=1500, moment_tokens=4000, gradient_windows=4
)
CONFIG = lmscout.PruneConfig(pairs=40, refit="none", calibration=CALIBRATION)


@pytest.fixture(scope="module")
def cluster():
    with three_nodes() as found:
        yield found


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(corpus_text("train")[:60_000])
    return str(file)


def pairs_of(folder):
    import optuna

    url = f"sqlite:///{folder / 'ledger.db'}"
    trials = optuna.load_study(study_name=STUDY, storage=url).trials
    return [(one.params, one.values, one.intermediate_values) for one in trials]


def test_pairs_are_measured_elsewhere_when_a_node_ends(cluster, text, tmp_path):
    address, kill_a_node = cluster
    killed = []

    def watch(stage, done, total):
        if stage == "measuring pairs" and done > 8 and not killed:
            killed.append(done)
            kill_a_node()

    def pruned(name, address=None, progress=False):
        return lmscout.prune(
            str(tiny_folder()),
            calibration=text,
            out=tmp_path / name,
            config=replace(CONFIG, cluster=address),
            progress=progress,
        )

    here = pruned("here")
    there = pruned("there", address, watch)
    assert killed
    wait_for(lambda: alive() < 3)
    assert pairs_of(tmp_path / "there") == pairs_of(tmp_path / "here")
    assert len(pairs_of(tmp_path / "here")) == CONFIG.pairs
    for one, other in zip(there.sizes, here.sizes, strict=True):
        assert one.plan == other.plan
        assert [each.held_out for each in one.finalists] == [
            each.held_out for each in other.finalists
        ]


def figures(result):
    """All of a result but how long it took."""
    return {name: value for name, value in result.to_dict().items() if name != "seconds"}


def test_discovery_and_trainings_are_those_of_one_process_although_a_node_ends(
    cluster, text, tmp_path, monkeypatch
):
    address, kill_a_node = cluster
    killed = []

    def watch(stage, done, total):
        if stage == "sketches" and done > 4 and not killed:
            killed.append(done)
            kill_a_node()

    bench = lmscout.load_benchmark("pico").subset(range(16))
    config = lmscout.DeepSearchConfig(evaluations=4, searches=2)
    found, qualities = {}, {}
    for name, more, progress in (
        ("here", {"workers": 1}, False),
        ("there", {"cluster": address}, watch),
    ):
        monkeypatch.setenv("LMSCOUT_CACHE", str(tmp_path / f"{name}-cache"))  # computed, not read
        found[name] = lmscout.discover(
            bench,
            space="deep",
            n_search=10,
            config=config,
            out=tmp_path / name,
            progress=progress,
            **more,
        )
        built = lmscout.build_benchmark(
            "nano",
            n=2,
            seeds=1,
            tokens=20_000,
            text=text,
            device="cpu",
            out=tmp_path / f"{name}-built",
            progress=False,
            **more,
        )
        qualities[name] = lmscout.load_benchmark(f"bench:{built.folder}").quality.tolist()
    assert killed
    wait_for(lambda: alive() < 3)
    assert figures(found["there"]) == figures(found["here"])
    assert qualities["there"] == qualities["here"]
    for name in ("hall_of_fame.csv", "evaluations/1-00000.parquet"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_what_cannot_be_done_is_said_in_one_line(cluster, text, tmp_path):
    address, _ = cluster
    bench = lmscout.load_benchmark("pico").subset(range(16))
    for more, said in (
        ({"backend": "sequential"}, "not with backend sequential"),
        ({"device": "cuda:1"}, "device cuda:1: a cluster gives each worker a device"),
    ):
        with pytest.raises(lmscout.LmscoutError, match=said):
            lmscout.rank(bench, "snip", cluster=address, **more)
    with pytest.raises(lmscout.LmscoutError, match="has no GPU"):
        lmscout.build_benchmark("nano", n=2, out=tmp_path, device="cuda", cluster=address)
