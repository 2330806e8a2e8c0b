"""Training on prepared tokens, and what is done with the model, need no package that `make gpu-pack` leaves out.

Nor those of the command line and of the playground. To all libraries they look as if they were not installed.
"""

import json
import subprocess
import sys
from pathlib import Path

from conftest import TINY

from mu_sota.data.corpus import load_corpus, save_corpus

PROGRAM = """
import json, sys
from importlib import metadata, util
from importlib.machinery import PathFinder
from pathlib import Path

LACKING = {"datasets", "pyarrow", "scipy", "matplotlib", "tensorboard", "gradio", "typer"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in LACKING else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *arguments, **options):
        found = super().find_distributions(*arguments, **options)
        return (one for one in found if one.metadata["Name"] not in LACKING)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
assert not any(util.find_spec(name) for name in LACKING)
assert not LACKING & {one.metadata["Name"] for one in metadata.distributions()}

from mu_sota.data import load_corpus
from mu_sota.evaluation import evaluate
from mu_sota.generation import sample, sampling_of
from mu_sota.leakcheck import check
from mu_sota.saved import export_model, load_trained
from mu_sota.settings import load_settings
from mu_sota.training import train

tokens, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
train("mu-sota", tokens, folder / "run", load_settings("mu-sota", overrides=settings))
model, tokenizer = load_trained(folder / "run")
score = evaluate(model, load_corpus(tokens, tokenizer=tokenizer).test, window=32, stride=32, batch_size=4)
sample(model, tokenizer, "the state", sampling_of(model), max_new_tokens=3, seed=0)
assert check(model).clean
export_model(folder / "run", folder / "exported")
print(json.dumps({"tokens": score.num_tokens, "loaded": sorted(LACKING & sys.modules.keys())}))
"""


def test_no_package_that_is_left_out_is_missed(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(tiny_corpus), vocab_size=300)
    save_corpus(corpus, tmp_path / "tokens")
    settings = TINY | {"trackers": [], "max_steps": 2}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "tokens"), str(tmp_path), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"tokens": corpus.test.n_predicted, "loaded": []}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data_fingerprint"] == corpus.fingerprint
