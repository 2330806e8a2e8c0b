"""Which files of a folder are text, and which split each belongs to, by the conventions of the library `datasets`."""

import contextlib
import fnmatch
import glob
import itertools
import os
import re
import stat
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mu_sota.model.errors import InputError, cut

from .options import COMPRESSIONS, SPLITS, TABLE_SUFFIXES, TextOptions

_READ_MES = {
    *("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS", "CITATION", "CHANGELOG", "CONTRIBUTING"),
}
_JSON = (".json", ".jsonl", ".ndjson")
_SHARD = re.compile(r"(.*[-._])([0-9]+)-of-([0-9]+)((?:-[^/.]*)?)((?:\.[^/]*)?)", re.DOTALL)
_BY_READ_ME = " by README.md"
_CONTENT = "or give --set splits=content where names mean no splits"


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        files: of `train`, `validation` and `test`, those there are; or of `all`, where names say no splits.
        left_out: (path in the folder, why) of all else but hidden files.
    """

    files: dict[str, list[Path]]
    left_out: list[tuple[Path, str]]


def find_files(folder: Path, options: TextOptions) -> Found:
    """The text files of a folder and of those in it, by split, as `datasets` reads their names or a README.md.

    Names count in any case, and `valid`, `dev`, `eval`, ... also where `datasets` takes them for splits of their own.
    Files come sorted by path, numbered shards by number. Hidden files and folders and folders like `__pycache__` do not
    count. Links to files do; links to folders are left out, as by `datasets`. Where names say no splits, or are to mean
    none, files of the most frequent kind are taken; read-mes among others only where names are to mean nothing.

    Raises:
        InputError: there is no text, it cannot be told which split a file belongs to, there are others but no `train`,
            or a shard is missing or there twice.
    """
    sizes, left_out = _walk(folder)
    texts = sorted((path for path in sizes if options.kind(path)), key=_order)
    left_out += [(path, "not a text file") for path in sizes.keys() - set(texts)]
    if options.splits == "content":
        files = {"all": texts}
    else:
        files = _named(folder, texts, Path("README.md") in sizes, options, left_out)
    if "all" in files:
        files = {"all": _of_one_kind(files["all"], sizes, options, left_out)}
        if not files["all"]:
            there = f"there is {_some(sorted(path for path, _ in left_out))}" if left_out else "it is empty"
            endings = ", ".join(dict.fromkeys((*options.text_suffixes, *TABLE_SUFFIXES)))
            raise InputError(
                f"{_shown(folder)} holds no text file ({there}; what counts ends in {endings}, or in these and one "
                f"of {', '.join(COMPRESSIONS)}): give another folder, or other endings with --set text_suffixes=."
            )
    if options.splits != "content":
        for paths in files.values():
            _refuse_two_formats(folder, paths, options)
            _refuse_incomplete_shards(folder, paths)
    return Found({split: [folder / path for path in paths] for split, paths in files.items()}, sorted(left_out))


def describe(found: Found, folder: Path) -> list[str]:
    """What was taken as what and what was left out, in lines of at most 80 columns."""
    groups: dict[str, list[Path]] = {
        "text without splits" if split == "all" else split: [path.relative_to(folder) for path in paths]
        for split, paths in found.files.items()
    }
    for path, reason in found.left_out:
        groups.setdefault(f"left out, {reason}", []).append(path)
    lines = []
    for group, paths in groups.items():
        names = ", ".join([*map(_shown, paths[:20]), *(["..."] if len(paths) > 20 else [])])
        text = f"{_shown(group)} ({len(paths):,}): {names}"
        lines += textwrap.wrap(
            text, 80, max_lines=2, placeholder=" ...", subsequent_indent="  ", break_on_hyphens=False
        )
    return lines


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result | str]]:
    """The paths in a folder that are not hidden, each with its status, or with what it is instead of a file.

    Nothing is opened but folders.

    Raises:
        InputError: the folder cannot be read.
    """
    folders = [""]
    while folders:
        inner = folders.pop()
        try:
            entries = list(os.scandir(folder / inner))
        except OSError as error:
            if not inner:
                raise InputError(
                    f"{_shown(folder)} cannot be read ({error.strerror or error}): check its permissions and its disk."
                ) from error
            yield inner, "a folder that cannot be opened"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{inner}/{entry.name}" if inner else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("__"):
                        folders.append(path)
                    continue
                status = entry.stat()
            except OSError:
                yield path, "a link to nothing"
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status
            else:
                yield path, "a link to a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"


def _walk(folder: Path) -> tuple[dict[Path, int], list[tuple[Path, str]]]:
    """Sizes of the regular files that are not hidden, and what else there is."""
    sizes: dict[Path, int] = {}
    others: list[tuple[Path, str]] = []
    for path, found in walk(folder):
        if isinstance(found, str):
            others.append((Path(path), found))
        else:
            sizes[Path(path)] = found.st_size
    return sizes, others


def _order(path: Path) -> tuple[str, int, str]:
    name = path.as_posix()
    return (shard[1], int(shard[2]), shard[4] + shard[5]) if (shard := _SHARD.fullmatch(name)) else (name, -1, "")


def _named(
    folder: Path, texts: list[Path], has_read_me: bool, options: TextOptions, left_out: list[tuple[Path, str]]
) -> dict[str, list[Path]]:
    """The files of each split that a README.md or names say; of `all`, where they say none."""
    from datasets.data_files import FILES_TO_IGNORE, SPLIT_KEYWORDS

    about = {path for path in texts if path.name in (*FILES_TO_IGNORE, "state.json")}  # the last is by `save_to_disk`
    candidates = [path for path in texts if path not in about]
    by, named = _BY_READ_ME, _by_read_me(folder, texts, options.data_config) if has_read_me else {}
    if not named:
        by, named = _by_names(candidates)
    if not named:
        _refuse_half_named(folder, candidates)
        about -= {path for path in about if path.name == "README.md"}
        left_out += [(path, "a file about data") for path in about]
        return {"all": _without_read_mes([path for path in texts if path not in about], options, left_out)}
    known = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    split_of: dict[Path, str] = {}
    reasons = dict.fromkeys(candidates, f"in no split{by}") | dict.fromkeys(about, "a file about data")
    for name, paths in named.items():
        split = known.get(name.lower())
        for path in paths:
            if split is None:
                reasons[path] = f"in no split but {name!r}"
            elif split_of.setdefault(path, split) != split:
                raise InputError(
                    f"{_shown(folder)} has {_shown(path)}, which is named as {split_of[path]} and as {split}: rename "
                    f"it, {_CONTENT}."
                )
    if "train" not in split_of.values():
        others = ", ".join(f"{_shown(name)} ({_some(paths)})" for name, paths in named.items())
        raise InputError(
            f"{_shown(folder)} has no text for train, only for {others}: name what is to be trained on so "
            f"(train.txt, or a folder train/), {_CONTENT}."
        )
    if by != _BY_READ_ME:
        _refuse_stray(
            folder, [path for path in candidates if reasons[path] == f"in no split{by}" and path not in split_of]
        )
    left_out += [(path, reason) for path, reason in reasons.items() if path not in split_of]
    files = {split: [path for path in texts if split_of.get(path) == split] for split in SPLITS}
    return {split: paths for split, paths in files.items() if paths}


def _by_names(texts: list[Path]) -> tuple[str, dict[str, list[Path]]]:
    """(by what, files of each name of a split): the first layout of `datasets` that any file has.

    Its patterns are matched with names of folders or files, instead of with the disk once for each pattern. The layouts
    that it has for logs (`.eval`) and for agents (`instruction.md`) are none for texts.
    """
    from datasets import data_files

    shard = fnmatch.translate(data_files.SPLIT_PATTERN_SHARDED).replace(re.escape("{split}"), r"(?P<split>\w+(\.\w+)*)")
    named: dict[str, list[Path]] = {}
    for path in texts:
        if len(path.parts) == 2 and (match := re.match(shard, path.as_posix(), re.IGNORECASE)):
            named.setdefault(match["split"], []).append(path)
    if named:
        return " by the shards in data/", named
    for by, patterns in (
        (" by the names of folders", data_files.DEFAULT_PATTERNS_SPLIT_IN_DIR_NAME),
        ("", data_files.DEFAULT_PATTERNS_SPLIT_IN_FILENAME),
    ):
        parts = {path: path.parts[:-1] if by else (path.name,) for path in texts}
        for split, globs in patterns.items():
            names = [fnmatch.translate(pattern.removeprefix("**/").removesuffix("/**")) for pattern in globs]
            says = re.compile("|".join(names), re.IGNORECASE).match
            if paths := [path for path in texts if any(map(says, parts[path]))]:
                named[str(split)] = paths
        if named:
            return by, named
    return "", {}


def _by_read_me(folder: Path, texts: list[Path], wanted: str | None) -> dict[str, list[Path]]:
    """The files of each split that the header of a README.md names, in the configuration that is wanted.

    Without a name, it is the only one, or the default.
    """
    from datasets.data_files import resolve_pattern, sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    where = _shown(folder / "README.md")
    try:
        content = (folder / "README.md").read_text(encoding="utf-8")
        configs = MetadataConfigs()
        if REGEX_YAML_BLOCK.search(content):
            configs = MetadataConfigs.from_dataset_card_data(DatasetCard(content).data)
        default = wanted or configs.get_default_config_name()
        config = configs.get(default, {}) if default else {}
        inner = str(config.get("data_dir") or "")
        patterns = sanitize_patterns(config.get("data_files") or (["**"] if inner else []))
    except Exception as error:  # of the disk, UTF-8, YAML and each library
        reason = cut(_shown(" ".join(str(error).split())), 200)
        raise InputError(f"{where} cannot be read for its splits ({reason}): mend its header, {_CONTENT}.") from error
    if configs and default not in configs:
        raise InputError(
            f"{where} names the configurations {', '.join(map(_shown, configs))}, and "
            f"{f'not {_shown(wanted)}' if wanted else 'none as the default'}: name one with --set data_config=, "
            f"{_CONTENT}."
        )
    root = folder.resolve()
    base = root / inner
    if inner and not config.get("data_files"):
        inside = {path.relative_to(inner): path for path in texts if path.is_relative_to(inner)}
        _, named = _by_names(list(inside))
        if named:
            return {split: [inside[path] for path in paths] for split, paths in named.items()}
    named = {}
    for split, globs in patterns.items():
        for pattern in map(str, globs):
            paths: set[Path] = set()
            if "://" not in pattern and not {"/", ".."} & {*Path(inner).parts, *Path(pattern).parts}:
                with contextlib.suppress(FileNotFoundError, ValueError):  # nothing matches, or nothing can
                    paths = {*map(Path, resolve_pattern(pattern, glob.escape(base.as_posix())))}
            matched = [path for path in texts if root / path in paths]
            if not matched:
                raise InputError(
                    f"{where} names {pattern!r} for {split}, which is no text file of "
                    f"{_shown(folder / inner)}: correct it, {_CONTENT}."
                )
            named.setdefault(split, []).extend(matched)
    return named


def _refuse_half_named(folder: Path, texts: list[Path]) -> None:
    """Refuse names that a person reads as a split though `datasets` does not.

    Such is a word of one of its keywords and `set`, `data`, `split`, `file`, `part`, `text`, `corpus`, their plurals or
    a plural `s` (`trainset`, `testfiles`, `tests`), or `holdout` and `heldout`, also with a hyphen. It begins where no
    letter is before it and ends where none follows, so that `contest`, `latest`, `testament` and `device` are none.
    """
    for path in texts:
        if match := _looks_like_a_split("").search(path.as_posix()):
            raise InputError(
                f"{_shown(folder)} has {_shown(path)}, which looks like a split but is not named like one: rename "
                f"{match[0]!r} to {(match[1] or 'test').lower()!r}, {_CONTENT}."
            )


def _refuse_stray(folder: Path, texts: list[Path]) -> None:
    """Refuse files that look like a split, also by a keyword alone, but are in none, since others say it otherwise."""
    for path in texts:
        if _looks_like_a_split("?").search(path.as_posix()):
            raise InputError(
                f"{_shown(folder)} has {_shown(path)}, which looks like a split but is in none, since other files name "
                f"theirs in another way: name all splits alike (train.txt, test.txt, or train/, test/), or remove it."
            )


def _looks_like_a_split(ending: str) -> re.Pattern[str]:
    from datasets.data_files import SPLIT_KEYWORDS

    words = "|".join(word for words in SPLIT_KEYWORDS.values() for word in words)
    ends = "(?:set|data|split|file|part|text|corpus)s?"
    letter = r"[^\W\d_]"
    named = rf"({words})(?:{ends}|s){ending}|h[eo]ld[-_]?out(?:{ends})?"
    return re.compile(rf"(?<!{letter})(?:{named})(?!{letter})", re.IGNORECASE)


def _without_read_mes(texts: list[Path], options: TextOptions, left_out: list[tuple[Path, str]]) -> list[Path]:
    beside = {
        path
        for path in texts
        if path.name.split(".")[0].upper() in _READ_MES and options.kind(path) in options.text_suffixes
    }
    if len(beside) in (0, len(texts)):
        return texts
    left_out += [(path, "a read-me beside data") for path in beside]
    return [path for path in texts if path not in beside]


def _of_one_kind(
    texts: list[Path], sizes: dict[Path, int], options: TextOptions, left_out: list[tuple[Path, str]]
) -> list[Path]:
    """The files of the kind that most are of, or the most bytes: plain text, .csv, .tsv, JSON, .parquet or .arrow."""
    kinds: dict[str, list[Path]] = {}
    for path in texts:
        kind = str(options.kind(path))
        family = "plain" if kind in options.text_suffixes else "JSON" if kind in _JSON else kind
        kinds.setdefault(family, []).append(path)
    taken = max(kinds.values(), key=lambda paths: (len(paths), sum(sizes[path] for path in paths)), default=[])
    for paths in kinds.values():
        if paths is not taken:
            most = Counter(options.kind(path) for path in taken).most_common(1)[0][0]
            left_out += [(path, f"of another kind than the {most} files") for path in paths]
    return taken


def _refuse_two_formats(folder: Path, texts: list[Path], options: TextOptions) -> None:
    """Refuse what seems to be one text twice; plain texts like `a.c` and `a.h` are two, unless named as a split."""
    same: dict[Path, list[Path]] = {}
    for path in texts:
        plain = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
        same.setdefault(Path(f"{plain.with_suffix('')}."), []).append(path)
    same = {stem: paths for stem, paths in same.items() if len(paths) > 1}
    splits = {path for paths in _by_names([Path(stem.name) for stem in same])[1].values() for path in paths}
    for stem, paths in same.items():
        kinds = {path.suffix.lower() for path in paths}
        if not kinds <= {*options.text_suffixes} or Path(stem.name) in splits:
            raise InputError(
                f"{_shown(folder)} has the same text in several formats ({_some(paths)}): keep one, {_CONTENT}."
            )


def _refuse_incomplete_shards(folder: Path, texts: list[Path]) -> None:
    shards: dict[str, list[tuple[Path, re.Match[str]]]] = {}
    for path in texts:
        if match := _SHARD.fullmatch(path.as_posix()):
            shards.setdefault(match[1], []).append((path, match))
    for found in shards.values():
        paths = [path for path, _ in found]
        numbers = Counter(int(match[2]) for _, match in found)
        counts = {int(match[3]) for _, match in found}
        twice = [path for path, match in found if numbers[int(match[2])] > 1]
        if len(counts) > 1 or twice:
            raise InputError(
                f"{_shown(folder)} has {_some(twice or paths)}, which number shards twice or in different ways: keep "
                f"one set, {_CONTENT}."
            )
        (count,) = counts
        first = 0 if 0 in numbers or count not in numbers else 1
        last = first + count - 1
        if max(numbers) > last:
            beyond = [path for path, match in found if int(match[2]) > last]
            raise InputError(
                f"{_shown(folder)} has {_some(beyond)}, more shards than the {count} that the names say: rename or "
                f"remove them, {_CONTENT}."
            )
        if count > len(numbers):
            path, match = found[0]
            absent = itertools.islice((i for i in range(first, last + 1) if i not in numbers), 3)
            names = [Path(f"{match[1]}{i:0{len(match[2])}}-of-{match[3]}{match[5]}") for i in absent]
            raise InputError(
                f"{_shown(folder)} lacks {_some(names, count - len(numbers))}, of the {count} shards that "
                f"{_shown(path)} is one of: add what is missing, {_CONTENT}."
            )


def _some(paths: Sequence[Path], count: int | None = None) -> str:
    """The first three, and how many more."""
    more = (count or len(paths)) - 3
    return ", ".join(map(_shown, paths[:3])) + (f" and {more:,} more" if more > 0 else "")


def _shown(name: str | Path) -> str:
    """On one line and without what a terminal obeys or cannot print."""
    return text if (text := str(name)).isprintable() else repr(text)[1:-1]
