"""How many processes compute one result."""

from typing import Annotated, Literal

from pydantic import Field

MOST = 8  # processes, and leaves of the tree that sums are taken in

Devices = Literal["auto"] | Annotated[int, Field(ge=1, le=MOST)]
