"""Train the full MU-SOTA model with its recipe: `python run_colab.py`.

The same as `mu-sota train --preset mu-sota --data wikitext-2 --out mu_sota_run --resume`. Whatever you add is passed
on and wins: `python run_colab.py --data my_texts/ --set batch_size=16`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

if __name__ == "__main__":
    try:
        from mu_sota.cli import main
    except ImportError as error:
        sys.exit(f"{error}. Install what is needed with: pip install . (in a notebook, then restart its kernel)")
    main(["train", "--preset", "mu-sota", "--data", "wikitext-2", "--out", "mu_sota_run", "--resume", *sys.argv[1:]])
