"""Where a model comes from, as its folder says: a Hub name or nothing, never a path."""

import json

import pytest

from lmscout.evaluation import Origin, read_origin


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a-model"
    folder.mkdir()
    return folder


def origin(folder):
    return read_origin(str(folder), folder)


def test_a_name_on_the_hub_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_origin("owner/name", None) == Origin("owner/name", "owner/name")
    assert read_origin("gpt2", None) == Origin("gpt2", "gpt2")


def test_a_folder_of_the_hubs_cache_is_its_model(tmp_path):
    snapshot = tmp_path / "models--owner--a.name-1" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    assert origin(snapshot) == Origin("owner/a.name-1", "0123abc")


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("config.json", {"_name_or_path": "owner/name"}, "owner/name"),
        ("config.json", {"_name_or_path": "/home/somebody/name"}, None),
        ("config.json", {"_name_or_path": "../name"}, None),
        ("config.json", {"_name_or_path": 7}, None),
        ("config.json", [1], None),
        ("lmscout.json", {"base_model": "owner/name"}, "owner/name"),
        ("lmscout.json", {"base_model": "a-folder"}, None),
    ],
)
def test_a_folder_may_have_written_down_its_name(folder, file, content, name):
    (folder / file).write_text(json.dumps(content))
    assert origin(folder) == Origin(name, "a-model")


@pytest.mark.parametrize(
    ("front", "name", "license", "link"),
    [
        ("license: apache-2.0", None, "apache-2.0", None),
        ("license: 'mit'  # as the code", None, "mit", None),
        ("license:\n- cc-by-4.0\nlanguage: en", None, "cc-by-4.0", None),
        ("license: [llama3]", None, "llama3", None),
        (
            "license: other\nlicense_link: https://a.b/c\nbase_model: o/n",
            "o/n",
            "other",
            "https://a.b/c",
        ),
        (
            "base_model: o/n\nlicense: other\nlicense_link: LICENSE",
            "o/n",
            "other",
            "https://huggingface.co/o/n/blob/main/LICENSE",
        ),
        ("license: other\nlicense_link: ../LICENSE", None, "other", None),
        ("license: !!python/object:os.system x", None, None, None),
        ("license: &a [*a]", None, None, None),
        ("base_model: /home/somebody/name", None, None, None),
    ],
)
def test_the_licence_is_that_of_the_card(folder, front, name, license, link):
    (folder / "README.md").write_text(f"---\n{front}\n---\n\nlicense: not-this\n")
    found = origin(folder)
    assert (found.name, found.license, found.license_link) == (name, license, link)


@pytest.mark.parametrize("text", ["", "license: mit\n", "---\nlicense: mit\n", "\0\xff" * 100])
def test_a_card_without_front_matter_says_nothing(folder, text):
    (folder / "README.md").write_text(text)
    assert origin(folder) == Origin(None, "a-model")
