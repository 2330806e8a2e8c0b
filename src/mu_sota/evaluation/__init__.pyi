from .cost import flops_per_token as flops_per_token
from .cost import parameter_table as parameter_table
from .metrics import Score as Score
from .metrics import evaluate as evaluate
from .ngram import KneserNey as KneserNey
from .ngram import unigram as unigram
