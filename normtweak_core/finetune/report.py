"""What the training of one block reports; no torch."""

from typing import Literal

from pydantic import BaseModel


class BlockTraining(BaseModel, frozen=True):
    """What training one block has brought, on windows that it has not seen."""

    block: int
    steps: int
    distance_before: float  # root mean square over tokens of |output - target| / |target|
    distance_after: float  # that of what was kept; where nothing was, at the end
    accepted: bool
    kept_step: int = 0  # after which the distance was least; 0: before the first, so nothing kept

    @property
    def outcome(self) -> Literal["kept", "rolled back"]:
        """What became of it."""
        return "kept" if self.accepted else "rolled back"
