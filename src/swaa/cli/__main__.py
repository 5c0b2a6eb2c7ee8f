"""`python -m swaa.cli`: the command `swaa`, for launchers that start modules (`accelerate launch -m swaa.cli eval`)."""

from swaa.cli import main

main()
