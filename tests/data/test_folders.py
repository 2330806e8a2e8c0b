"""Which files of a folder are taken as text, for which split, and what is said of the others."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mu_sota.data import folders
from mu_sota.data.folders import Found, describe, find_files
from mu_sota.data.options import TextOptions
from mu_sota.model.errors import InputError

NAMES, CONTENT = TextOptions(), TextOptions(splits="content")


def make(folder: Path, *names: str, text: str = "text") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def taken(folder: Path, found: Found) -> dict[str, list[str]]:
    return {split: [path.relative_to(folder).as_posix() for path in paths] for split, paths in found.files.items()}


def look(folder: Path, options: TextOptions = NAMES) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Files by split, and reasons of what is left out, by path."""
    found = find_files(folder, options)
    return taken(folder, found), {path.as_posix(): reason for path, reason in found.left_out}


def refusal(folder: Path, options: TextOptions = NAMES) -> str:
    with pytest.raises(InputError) as caught:
        find_files(folder, options)
    message = str(caught.value).removeprefix(str(folder)).strip()
    assert "\n" not in message
    assert message.endswith(".")
    return message


# What `datasets` gives too: layout -> files of each split.
LAYOUTS = {
    "plain": {"train": ["train.txt"], "validation": ["valid.txt"], "test": ["test.txt"]},
    "long_names": {"train": ["training.txt"], "validation": ["validation.txt"], "test": ["evaluation.txt"]},
    "short_names": {"train": ["train.csv"], "validation": ["val.csv"], "test": ["eval.csv"]},
    "dev": {"train": ["train.jsonl"], "validation": ["dev.jsonl"], "test": ["testing.jsonl"]},
    "only_train": {"train": ["train.txt"]},
    "infix": {"train": ["wiki.train.txt"], "validation": ["wiki.valid.txt"], "test": ["wiki.test.txt"]},
    "hyphens": {"train": ["my-train-file.csv"], "test": ["my-test-file.csv"]},
    "suffix": {"train": ["corpus_train.txt"], "validation": ["corpus_dev.txt"]},
    "digits": {"train": ["train1.txt", "train2.txt"], "test": ["test1.txt"], "validation": ["valid_v2.txt"]},
    "spaces": {"train": ["a train file.txt"], "test": ["a test file.txt"]},
    "numbered": {"train": ["train_0.csv", "train_1.csv"], "test": ["test_0.csv"]},
    "folders": {"train": ["train/a.txt", "train/b.txt"], "validation": ["valid/a.txt"], "test": ["test/a.txt"]},
    "folders_with_affixes": {"train": ["my-train-data/a.txt"], "test": ["test_2/deep/er/a.txt"]},
    "folders_in_folders": {"train": ["en/train/a.txt", "fr/train/a.txt"], "test": ["en/test/a.txt"]},
    "split_folder": {"train": ["split/train.txt"], "test": ["split/test.txt"]},
    "shards_in_data": {
        "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        "test": ["data/test-00000-of-00001.parquet"],
    },
    "shards_with_hashes": {"train": ["data/train-00000-of-00001-0a1b2c3d.parquet"]},
    "shards": {"train": ["train-00000-of-00001.jsonl"], "validation": ["valid-00000-of-00001.jsonl"]},
    "folder_like_a_shard": {"train": ["data/a-00000-of-00001.d/train.txt"]},
    "compressed": {"train": ["train.jsonl.gz"], "test": ["test.jsonl.gz"]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_those_of_datasets(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = make(tmp_path / "corpus", *(name for names in LAYOUTS[layout].values() for name in names), "README.md")
    make(folder, ".hidden/train.txt", "__pycache__/train.txt", "dataset_infos.json", text="{}")
    files, left_out = look(folder)
    assert files == LAYOUTS[layout]
    assert left_out == {"README.md": "a file about data", "dataset_infos.json": "a file about data"}
    theirs = datasets.load_dataset_builder(str(folder)).config.data_files
    assert {
        str(split): sorted(Path(p).relative_to(folder).as_posix() for p in theirs[split]) for split in theirs
    } == files


KEYWORDS = ["training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation", "latest", "a"]
WORDS = st.lists(st.sampled_from([*KEYWORDS, "train"]), min_size=1, max_size=2)
STEMS = st.builds(str.join, st.sampled_from(["-", "_", " ", ".", "0", "X", "é"]), WORDS)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["", "data/", "train/", "train_1/"]), st.lists(st.lists(STEMS, min_size=1, max_size=3), max_size=3)
)
def test_any_names_mean_what_they_mean_to_datasets(
    tmp_path_factory: pytest.TempPathFactory, start: str, paths: list[list[str]]
) -> None:
    folder = make(tmp_path_factory.mktemp("names"), f"{start}train.txt", *("_d/".join(path) + ".txt" for path in paths))
    theirs: dict[str, list[str]] = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    theirs = {str(split): sorted(set(files)) for split, files in theirs.items()}
    files = [file for files in theirs.values() for file in files]
    if len(set(files)) < len(files):
        assert "is named as" in refusal(folder)  # they take a file twice
    elif "train" not in theirs:
        assert "no text for train" in refusal(folder)
    else:
        try:
            found = find_files(folder, NAMES)
        except InputError as error:  # of a file that they pass over in silence
            stray = {str(path) for path in folder.rglob("*.txt")} - set(files)
            said = str(error)
            assert any(Path(path).relative_to(folder).as_posix() in said for path in stray)
            return
        assert {split: sorted(map(str, files)) for split, files in found.files.items()} == theirs


def test_datasets_is_not_needed_where_names_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "datasets" not in vars(folders)
    monkeypatch.setitem(sys.modules, "datasets.data_files", None)
    assert look(make(tmp_path, "test.txt", "README.md"), CONTENT)[0] == {"all": ["README.md", "test.txt"]}
    with pytest.raises(ImportError):
        find_files(tmp_path, NAMES)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        pytest.param(["Train.TXT", "TEST.txt"], {"train": ["Train.TXT"], "test": ["TEST.txt"]}, id="any_case"),
        pytest.param(["train.txt", "test.md"], {"train": ["train.txt"], "test": ["test.md"]}, id="mixed_endings"),
        pytest.param(
            ["data/train-00000-of-00001.txt", "data/dev-00000-of-00001.txt"],
            {"train": ["data/train-00000-of-00001.txt"], "validation": ["data/dev-00000-of-00001.txt"]},
            id="short_names_of_shards",
        ),
        pytest.param(["train.txt", "train.png"], {"train": ["train.txt"]}, id="pictures"),
        pytest.param(["a.txt", "train.png"], {"all": ["a.txt"]}, id="only_a_picture_is_named"),
        pytest.param(["a.txt", "instruction.md"], {"all": ["a.txt", "instruction.md"]}, id="no_layout_for_agents"),
        pytest.param(["train/data.arrow", "train/state.json"], {"train": ["train/data.arrow"]}, id="saved_to_disk"),
        pytest.param(["train/a.c", "train/a.h"], {"train": ["train/a.c", "train/a.h"]}, id="source_and_header"),
        pytest.param(["README.csv", "a.csv"], {"all": ["README.csv", "a.csv"]}, id="table_named_as_a_read_me"),
        pytest.param(["b/z.txt", "a.txt", "b.txt"], {"all": ["a.txt", "b.txt", "b/z.txt"]}, id="no_splits"),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, names: list[str], splits: dict[str, list[str]]) -> None:
    assert look(make(tmp_path, *names))[0] == splits


def test_custom_splits_are_left_out_by_name(tmp_path: Path) -> None:
    make(tmp_path, *(f"data/{split}-00000-of-00001.parquet" for split in ("train", "train_sft", "unsupervised")))
    files, left_out = look(make(tmp_path, "notes.txt"))
    assert files == {"train": ["data/train-00000-of-00001.parquet"]}
    assert left_out == {
        "data/train_sft-00000-of-00001.parquet": "in no split but 'train_sft'",
        "data/unsupervised-00000-of-00001.parquet": "in no split but 'unsupervised'",
        "notes.txt": "in no split by the shards in data/",
    }
    (tmp_path / "data" / "train-00000-of-00001.parquet").unlink()
    assert refusal(tmp_path).startswith(
        "has no text for train, only for train_sft (data/train_sft-00000-of-00001.parquet)"
    )


def test_what_is_in_no_split_is_left_out(tmp_path: Path) -> None:
    assert look(make(tmp_path / "files", "train.txt", "notes.txt"))[1] == {"notes.txt": "in no split"}
    by_folders = look(make(tmp_path / "folders", "train/a.txt", "notes.txt"))
    assert by_folders == ({"train": ["train/a.txt"]}, {"notes.txt": "in no split by the names of folders"})


@pytest.mark.parametrize("stray", ["test.txt", "testset.txt", "held-out/a.txt", "my_valid.txt"])
def test_what_looks_like_a_split_beside_others_is_refused(tmp_path: Path, stray: str) -> None:
    make(tmp_path, "train/a.txt", stray)
    assert f"has {stray}, which looks like a split but is in none" in refusal(tmp_path)


def test_splits_without_train_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "valid.txt", "test/a.py", "test/b.py", "main.py")
    message = refusal(tmp_path)
    assert message.startswith("has no text for train, only for test (test/a.py, test/b.py): name what is to be trained")
    assert "--set splits=content" in message
    assert look(tmp_path, CONTENT) == ({"all": ["main.py", "test/a.py", "test/b.py", "valid.txt"]}, {})


def test_a_file_of_two_splits_is_refused(tmp_path: Path) -> None:
    assert refusal(make(tmp_path, "train.txt", "train-test.txt")).startswith(
        "has train-test.txt, which is named as train and as test: rename it"
    )


def test_content_means_that_no_name_counts(tmp_path: Path) -> None:
    make(tmp_path, "train.txt", "test.txt", "trainset.txt", "README.md", "x-00001-of-00009.txt", "x.md", "x.md.gz")
    files, left_out = look(tmp_path, CONTENT)
    assert files == {
        "all": ["README.md", "test.txt", "train.txt", "trainset.txt", "x-00001-of-00009.txt", "x.md", "x.md.gz"]
    }
    assert left_out == {}


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("trainset.txt", "'trainset' to 'train'"),
        ("TestSet/a.txt", "'TestSet' to 'test'"),
        ("devset.txt", "'devset' to 'dev'"),
        ("my_traindata.csv", "'traindata' to 'train'"),
        ("tests/a.py", "'tests' to 'test'"),
        ("valsplit.txt", "'valsplit' to 'val'"),
        ("evalfiles/a.txt", "'evalfiles' to 'eval'"),
        ("holdout.txt", "'holdout' to 'test'"),
        ("held-out/a.txt", "'held-out' to 'test'"),
    ],
)
def test_names_that_suggest_a_split_are_refused(tmp_path: Path, name: str, advice: str) -> None:
    message = refusal(make(tmp_path, "a.txt", name))
    assert message.startswith(f"has {name}, which looks like a split but is not named like one: rename {advice}, or ")
    assert "--set splits=content" in message
    assert len(look(tmp_path, CONTENT)[0]["all"]) + len(look(tmp_path, CONTENT)[1]) == 2


ORDINARY = [
    *("contest", "latest", "device", "attest", "greatest", "protest", "Testament", "validity", "devotion", "evaluate"),
    *("trainer", "tester", "values", "developer", "strain", "medieval", "rival", "invalid", "upholdout", "testsuite"),
]


@pytest.mark.parametrize("word", ORDINARY)
def test_ordinary_words_are_no_splits(tmp_path: Path, word: str) -> None:
    names = sorted([f"{word}.txt", f"{word}/a.txt", "a.txt"])
    assert look(make(tmp_path, *names)) == ({"all": names}, {})


def test_missing_shards_are_named(tmp_path: Path) -> None:
    make(tmp_path / "one", "train-00000-of-00003.jsonl.gz", "train-00002-of-00003.jsonl.gz")
    assert refusal(tmp_path / "one").startswith(
        "lacks train-00001-of-00003.jsonl.gz, of the 3 shards that train-00000-of-00003.jsonl.gz is one of: add"
    )
    make(tmp_path / "many", "x/corpus.7-of-999999999999.txt")
    assert "lacks x/corpus.0-of-999999999999.txt, x/corpus.1-of-999999999999.txt, x/corpus.2-of-9999" in (
        refusal(tmp_path / "many")
    )
    assert "and 999,999,999,995 more" in refusal(tmp_path / "many")


def test_shards_may_count_from_one(tmp_path: Path) -> None:
    names = [f"train-{i}-of-11.txt" for i in range(1, 12)]
    assert look(make(tmp_path, *names))[0] == {"train": names}  # in the order of their numbers, too


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a-0-of-2.txt", "a-1-of-2.txt", "a-2-of-2.txt"], "has a-2-of-2.txt, more shards than the 2 that the names"),
        (["a-0-of-1.txt", "a-5-of-1.txt"], "has a-5-of-1.txt, more shards than the 1 that"),
        (["a-0-of-1.txt", "a-0-of-2.txt", "a-1-of-2.txt"], "has a-0-of-2.txt, a-0-of-1.txt, which number shards twice"),
        (["a-0-of-2.txt", "a-1-of-3.txt"], "has a-0-of-2.txt, a-1-of-3.txt, which number shards twice or in different"),
        (["b-0-of-1.txt", "b-0-of-1.txt.gz"], "has the same text in several formats (b-0-of-1.txt, b-0-of-1.txt.gz)"),
        (["b-0-of-1-ab.txt", "b-0-of-1-cd.txt"], "has b-0-of-1-ab.txt, b-0-of-1-cd.txt, which number shards twice"),
    ],
)  # fmt: skip
def test_shards_that_do_not_fit_are_refused(tmp_path: Path, names: list[str], problem: str) -> None:
    assert refusal(make(tmp_path, *names)).startswith(problem)


@pytest.mark.parametrize(
    "names",
    [
        ["train.jsonl", "train.txt"],
        ["train.txt", "train.txt.gz"],
        ["train.md", "train.txt"],
        ["train/a.parquet", "train/a.jsonl"],
        ["a.txt", "a.txt.xz"],
    ],
    ids=" ".join,
)
def test_the_same_text_in_two_formats_is_refused(tmp_path: Path, names: list[str]) -> None:
    assert refusal(make(tmp_path, *names)).startswith(
        f"has the same text in several formats ({', '.join(sorted(names))})"
    )


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "__init__.py", ".a.txt", "._a.txt", ".DS_Store", ".git/a.txt", "b/.ipynb_checkpoints/a.txt")
    make(tmp_path, "__pycache__/a.txt", "b/__x/a.txt")
    assert look(tmp_path) == ({"all": ["__init__.py", "a.txt"]}, {})


def test_other_files_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "a.txt", "a.png", "b/c.bin", "Makefile", "dataset_info.json", "config.json", "a.zip.gz")
    assert look(tmp_path)[1] == {
        **dict.fromkeys(("Makefile", "a.png", "a.zip.gz", "b/c.bin"), "not a text file"),
        **dict.fromkeys(("config.json", "dataset_info.json"), "a file about data"),
    }


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("holds no text file (it is empty; what counts ends in .txt, .text, .md,")
    make(tmp_path, "a.png", "b.png", "c.png", "d.xyz", "config.json")
    assert "(there is a.png, b.png, c.png and 2 more; what counts ends in" in refusal(tmp_path)
    assert "--set text_suffixes=" in refusal(tmp_path)
    assert look(tmp_path, TextOptions(text_suffixes=(".xyz",)))[0] == {"all": ["d.xyz"]}


@pytest.mark.parametrize(
    "name", ["README.md", "readme.txt", "README.de.md", "sub/README.md", "LICENSE.txt", "Licence.md", "COPYING.txt",
             "NOTICE.txt", "AUTHORS.rst", "CITATION.txt", "CHANGELOG.md", "CONTRIBUTING.md"]
)  # fmt: skip
def test_read_mes_are_left_out_beside_data(tmp_path: Path, name: str) -> None:
    assert look(make(tmp_path, name))[0] == {"all": [name]}
    assert look(make(tmp_path, "a.txt")) == ({"all": ["a.txt"]}, {name: "a read-me beside data"})
    files, left_out = look(make(tmp_path, "train/LICENSE.txt"))
    assert files == {"train": ["train/LICENSE.txt"]}  # where names say splits, as `datasets` does
    assert left_out["a.txt"] == "in no split by the names of folders"


def test_one_kind_is_taken_where_names_say_no_splits(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "b.py", "c.md", "d.json", "e.jsonl", "f.csv")
    for options in (NAMES, CONTENT):
        assert look(tmp_path, options) == (
            {"all": ["a.py", "b.py", "c.md"]},
            dict.fromkeys(("d.json", "e.jsonl", "f.csv"), "of another kind than the .py files"),
        )
    make(tmp_path, "g.ndjson", text="much longer than the others")  # three each: the most bytes win
    files, left_out = look(tmp_path)
    assert files == {"all": ["d.json", "e.jsonl", "g.ndjson"]}
    assert set(left_out) == {"a.py", "b.py", "c.md", "f.csv"}


README = "---\nlicense: mit\nconfigs:\n{}\n---\n# Data\n"


def write_read_me(folder: Path, configs: str) -> Path:
    (folder / "README.md").write_text(README.format(configs), encoding="utf-8")
    return folder


def test_a_read_me_names_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = make(tmp_path / "a [1] corpus", "x/one.txt", "x/two.txt", "y.txt", "z.txt", "train.txt", "w.png")
    write_read_me(
        folder,
        "- config_name: other\n  data_files: train.txt\n"
        "- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: x/*\n"
        "  - split: dev\n    path: [y.*]\n  - split: extra\n    path: z.txt",
    )
    files, left_out = look(folder)
    assert files == {"train": ["x/one.txt", "x/two.txt"], "validation": ["y.txt"]}
    assert left_out == {
        "README.md": "a file about data",
        "train.txt": "in no split by README.md",
        "w.png": "not a text file",
        "z.txt": "in no split but 'extra'",
    }
    assert look(folder, CONTENT)[0]["all"] == ["README.md", "train.txt", "x/one.txt", "x/two.txt", "y.txt", "z.txt"]
    folder = folder.rename(tmp_path / "corpus")  # `datasets` takes brackets for a pattern
    theirs = datasets.load_dataset_builder(str(folder)).config.data_files
    assert {split: [Path(p).relative_to(folder).as_posix() for p in theirs[split]] for split in theirs} == {
        "train": ["x/one.txt", "x/two.txt"],
        "dev": ["y.txt"],
        "extra": ["z.txt"],
    }


@pytest.mark.parametrize(
    ("config", "splits"),
    [
        ("data_files: '*.txt'", {"train": ["a.txt"]}),
        ("data_files: [a.txt, en/train.txt]", {"train": ["a.txt", "en/train.txt"]}),
        ("data_dir: en", {"train": ["en/train.txt"], "test": ["en/test.txt"]}),
        ("data_dir: fr", {"train": ["fr/b.txt"]}),
        ("data_dir: en\n  data_files: te*", {"train": ["en/test.txt"]}),
        ("drop_labels: true", {"train": ["en/train.txt"], "test": ["en/test.txt"]}),
    ],
)
def test_a_read_me_may_name_files_or_a_folder(tmp_path: Path, config: str, splits: dict[str, list[str]]) -> None:
    make(tmp_path, "a.txt", "en/train.txt", "en/test.txt", "fr/b.txt")
    assert look(write_read_me(tmp_path, f"- config_name: only\n  {config}"))[0] == splits
    assert look(tmp_path, TextOptions(text_suffixes=(".txt",)))[0] == splits  # a read-me is read even if no text


def test_one_of_several_configurations_is_chosen_by_name(tmp_path: Path) -> None:
    header = "configs:\n- {config_name: en, data_files: a.txt}\n- {config_name: fr, data_files: b.txt}"
    make(tmp_path, "a.txt", "b.txt")
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    found = find_files(tmp_path, TextOptions(data_config="fr"))
    assert found.files == {"train": [tmp_path / "b.txt"]}
    with pytest.raises(InputError, match=r"names the configurations en, fr, and not de: name one"):
        find_files(tmp_path, TextOptions(data_config="de"))


@pytest.mark.parametrize(
    ("configs", "problem"),
    [
        ("- {config_name: en, data_files: a.txt}\n- {config_name: fr, data_files: b.txt}", "and none as the default"),
        ("- {config_name: a, default: true}\n- {config_name: b, default: true}", "for its splits (Dataset has several"),
        ("- {config_name: en, data_files: [nothing.txt]}", "names 'nothing.txt' for train, which is no text file of"),
        ("- {config_name: en, data_files: b.png}", "names 'b.png' for train, which is no text file of"),
        ("- {config_name: en, data_files: ../outside.txt}", "names '../outside.txt' for train"),
        ("- {config_name: en, data_files: /etc/passwd}", "names '/etc/passwd' for train"),
        ("- {config_name: en, data_files: 'https://example.org/a.txt'}", "names 'https://example.org/a.txt' for train"),
        ("- {config_name: en, data_files: '**.txt'}", "names '**.txt' for train"),
        ("- {config_name: en, data_dir: ..}", "names '**' for train"),
        ("- {config_name: en, data_files: 7}", "cannot be read for its splits (Expected data_files in YAML"),
        ("- en", "cannot be read for its splits"),
        ("en: 'fr", "cannot be read for its splits"),
        ("- {config_name: en, data_files: [{split: test, path: a.txt}]}", "no text for train, only for test (a.txt)"),
        (
            "- config_name: en\n  data_files: [{split: train, path: a.txt}, {split: test, path: a.*}]",
            "has a.txt, which is named as train and as test",
        ),
    ],
)  # fmt: skip
def test_a_read_me_that_says_nothing_clear_is_refused(tmp_path: Path, configs: str, problem: str) -> None:
    make(tmp_path / "outside", "../outside.txt")
    folder = write_read_me(make(tmp_path / "corpus", "a.txt", "b.png"), configs)
    assert problem in refusal(folder)
    assert "--set splits=content" in refusal(folder)
    assert look(folder, CONTENT)[0] == {"all": ["README.md", "a.txt"]}


def test_nothing_outside_of_the_folder_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.data_files.resolve_pattern", lambda *_: pytest.fail("looked for"))
    for pattern in ("/**", "../**", "a/../../**", "hf://datasets/a/b"):
        write_read_me(make(tmp_path, "a.txt"), f"- config_name: en\n  data_files: {pattern!r}")
        assert f"names {pattern!r} for train" in refusal(tmp_path)


def test_a_read_me_without_header_or_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, "a.txt")
    (tmp_path / "README.md").write_text("# Data\n\n---\n", encoding="utf-8")
    assert look(tmp_path)[0] == {"all": ["a.txt"]}
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert "README.md cannot be read for its splits ('utf-8' codec" in refusal(tmp_path)


def test_links_and_special_files_are_listed(tmp_path: Path) -> None:
    folder = make(tmp_path / "corpus", "a.txt", "sub/b.txt")
    make(tmp_path, "elsewhere.txt")
    os.mkfifo(folder / "fifo.txt")
    os.mkfifo(folder / "fifo")
    (folder / "dangling.txt").symlink_to(tmp_path / "nothing")
    (folder / "circle.txt").symlink_to("circle.txt")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "linked.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert look(folder) == (
        {"all": ["a.txt", "linked.txt", "sub/b.txt"]},
        {
            "circle.txt": "a link to nothing",
            "dangling.txt": "a link to nothing",
            "fifo": "not a regular file",
            "fifo.txt": "not a regular file",
            "loop": "a link to a folder",
        },
    )


def test_a_fifo_as_read_me_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(make(tmp_path, "a.txt") / "README.md")
    assert look(tmp_path) == ({"all": ["a.txt"]}, {"README.md": "not a regular file"})


def test_folders_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.txt", "closed/b.txt")
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name in denied:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    denied = ["closed"]
    assert look(tmp_path) == ({"all": ["a.txt"]}, {"closed": "a folder that cannot be opened"})
    denied = [tmp_path.name]
    assert refusal(tmp_path) == "cannot be read (Permission denied): check its permissions and its disk."
    denied = []
    assert refusal(tmp_path / "none").startswith("cannot be read (No such file or directory)")


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    odd = ["new\nline.txt", "\x1b[31mred.txt", os.fsdecode(b"\xff.txt"), "ü.txt"]
    try:
        make(tmp_path, *odd, "esc\x1b.png")
    except OSError:
        pytest.skip("the file system wants UTF-8")
    assert set(look(tmp_path)[0]["all"]) == set(odd)
    lines = "\n".join(describe(find_files(tmp_path, NAMES), tmp_path))
    assert lines.splitlines() == [
        r"text without splits (4): \x1b[31mred.txt, new\nline.txt, ü.txt, \udcff.txt",
        r"left out, not a text file (1): esc\x1b.png",
    ]
    lines.encode("utf-8")
    make(tmp_path, "tests\n.txt").joinpath("tests\n.txt").rename(tmp_path / "tests\x1b.txt")
    assert r"has tests\x1b.txt, which looks" in refusal(tmp_path)


def test_ten_thousand_files_take_seconds(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i}").mkdir()
        for j in range(100):
            (tmp_path / f"{i}" / f"{j}.txt").touch()
    start = time.process_time()
    found = find_files(tmp_path, NAMES)
    lines = describe(found, tmp_path)
    assert time.process_time() - start < 5
    assert len(found.files["all"]) == 10_000
    assert lines == [
        "text without splits (10,000): 0/0.txt, 0/1.txt, 0/10.txt, 0/11.txt, 0/12.txt,",
        "  0/13.txt, 0/14.txt, 0/15.txt, 0/16.txt, 0/17.txt, 0/18.txt, 0/19.txt, ...",
    ]


def test_description_names_and_counts(tmp_path: Path) -> None:
    make(tmp_path, "train.txt", "train-2.txt", "test.txt", "a.png", "b.png", "notes.txt")
    make(tmp_path, f"{'long' * 50}.png", *(f"b/{i:02}.bin" for i in range(30)))
    lines = describe(find_files(tmp_path, NAMES), tmp_path)
    assert lines[:2] == ["train (2): train-2.txt, train.txt", "test (1): test.txt"]
    assert lines[2].startswith("left out, not a text file (33): a.png, b/00.bin, b/01.bin, b/02.bin,")
    assert lines[3].endswith("...")
    assert lines[4:] == ["left out, in no split (1): notes.txt"]
    assert max(map(len, lines)) <= 80


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"x-{i}-of-11.txt" for i in range(11)]
    names = ["B.txt", "a-b.txt", "a/b.txt", "a/c/d.txt", "aa.txt", *shards, "é.txt"]
    make(tmp_path, *reversed(names))
    assert look(tmp_path)[0]["all"] == names
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scan(path), key=lambda entry: entry.name, reverse=True))
    assert look(tmp_path)[0]["all"] == names


PARTS = st.sampled_from(
    ["train", "test", "val", "a", "B", "latest", ".git", "__x", "data", "README", "config", "train-0-of-1"]
)
ENDINGS = st.sampled_from([".txt", ".TXT", ".md", ".json", ".csv", ".parquet", ".png", "", ".txt.gz"])
TREES = st.lists(st.tuples(st.lists(PARTS, max_size=2), PARTS, ENDINGS), min_size=1, max_size=8)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, st.sampled_from([NAMES, CONTENT]))
def test_every_file_is_taken_or_left_out(
    tmp_path_factory: pytest.TempPathFactory, tree: list[tuple[list[str], str, str]], options: TextOptions
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for parts, stem, ending in tree:
        place = folder.joinpath(*(f"{part}_d" for part in parts))  # no folder has the name of a file
        make(place, f"{stem}{ending}")
    try:
        files, left_out = look(folder, options)
    except InputError:
        return
    listed = [*(name for names in files.values() for name in names), *left_out]
    everything = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert sorted(listed) == sorted(
        path.as_posix()
        for path in everything
        if not any(part.startswith(".") for part in path.parts)
        and not any(part.startswith("__") for part in path.parts[:-1])
    )
    assert files.keys() <= {"train", "validation", "test"} or files.keys() == {"all"}
    assert all(files.values())
