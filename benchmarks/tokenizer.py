"""How long a corpus takes from text to token ids, the first time and from the cache.

    python benchmarks/tokenizer.py data/wikitext-2 --out docs/results/tokenizer.json

The folder holds train, valid and test .txt: the tokenizer is trained on the first, and all are encoded.
"""

import argparse
import tempfile
from pathlib import Path

from side_by_side import seconds

from mu_sota.common import environment
from mu_sota.common.files import write_json
from mu_sota.data.corpus import load_corpus


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as in mu-sota train --data")
    parser.add_argument("--out", type=Path, help="JSON record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        first = seconds(lambda: load_corpus(arguments.data, cache_dir=Path(cache)))
        second = seconds(lambda: load_corpus(arguments.data, cache_dir=Path(cache)))
        corpus = load_corpus(arguments.data, cache_dir=Path(cache))
        sizes = {name: getattr(corpus, name).n_bytes for name in ("train", "validation", "test")}
    print(f"{sum(sizes.values()) / 1e6:.1f} MB: {first:.1f} s the first time, {second:.2f} s from the cache")
    if arguments.out:
        write_json(
            arguments.out,
            {
                "what": "seconds from text to token ids: BPE training and encoding, and a second start from the cache",
                "command": "python benchmarks/tokenizer.py data/wikitext-2",
                "bytes": sizes,
                "first": first,
                "second": second,
                "machine": environment.describe(),
            },
        )


if __name__ == "__main__":
    main()
