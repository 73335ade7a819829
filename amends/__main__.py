"""`python -m amends`, and with it `accelerate launch -m amends`: the same as the command `amends`."""

from amends.cli import main

main()
