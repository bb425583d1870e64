"""The stages of a batch, whose times are recorded. No torch here: the command line knows them."""

from typing import Literal, get_args

Stage = Literal["values", "keys", "update", "transform"]
STAGES: tuple[Stage, ...] = get_args(Stage)
