"""`python -m mu_sota`, which `torchrun -m mu_sota` needs."""

from .cli import main

main()
