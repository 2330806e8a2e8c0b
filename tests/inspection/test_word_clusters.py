"""Groups of words by their neighbours, on made-up text where two kinds of words have neighbours of their own."""

import random

from mu_sota.inspection.word_clusters import word_clusters


def made_up(seed: int = 0) -> str:
    """Sentences about animals or about tools, around words that stand everywhere."""
    choose = random.Random(seed)
    common = [f"the{letter}{other}" for letter in "abcdefghij" for other in "abcdefghij"]
    kinds = [
        [f"{kind}{letter}{other}" for letter in "abcdefghijk" for other in "abcdefghijk"] for kind in ("ani", "too")
    ]
    words = []
    for _ in range(6000):
        kind = choose.choice(kinds)
        words += [*choose.choices(common, k=6), *choose.choices(kind, k=4)]
    return " ".join(words)


def test_words_with_the_same_neighbours_are_in_one_group() -> None:
    groups = word_clusters([made_up()], 2)
    animals = {group for word, group in groups.items() if word.startswith("ani")}
    tools = {group for word, group in groups.items() if word.startswith("too")}
    assert len(animals) == len(tools) == 1
    assert animals != tools
    assert not any(word.startswith("the") for word in groups), "the 100 most frequent are beside everything"


def test_the_same_text_gives_the_same_groups() -> None:
    text = made_up()
    assert word_clusters([text], 4) == word_clusters([text], 4)


def test_too_few_words_are_not_grouped() -> None:
    assert word_clusters(["one two one two three"], 2) == {}
