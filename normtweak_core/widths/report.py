"""What the widths of a model cost, and which it got: the rows that users and artifacts read."""

from pydantic import BaseModel


class GroupCost(BaseModel, frozen=True):
    """Linears that have one width: they read the same tensor, or are experts of one mixture."""

    block: int
    linears: dict[str, tuple[int, int]]  # outputs and inputs, by name in the block
    # Nats per token from the float model, by its width; all others have the narrowest.
    divergence: dict[int, float]

    @property
    def weights(self) -> int:
        """How many weights the linears have."""
        return sum(rows * columns for rows, columns in self.linears.values())


class AllottedGroup(GroupCost, frozen=True):
    """A group with what each width takes, and the one that it got."""

    stored_bits: dict[int, int]
    width: int


class Allotment(BaseModel, frozen=True):
    """The widths of a model."""

    asked: float  # bits per weight
    groups: list[AllottedGroup]

    @property
    def average(self) -> float:
        """Bits per weight that all quantized linears take as they are stored."""
        taken = sum(one.stored_bits[one.width] for one in self.groups)
        return taken / sum(one.weights for one in self.groups)

    @property
    def at_narrowest(self) -> float:
        """Nats per token where all groups have the narrowest width."""
        costs = self.groups[0].divergence
        return costs[min(costs)]

    @property
    def saved(self) -> float:
        """Nats per token of it that the groups save in sum, each by itself."""
        return sum(self.at_narrowest - one.divergence[one.width] for one in self.groups)

    def of_block(self, index: int) -> dict[str, int]:
        """Return the widths of a block's linears by their names in it."""
        return {
            name: one.width for one in self.groups if one.block == index for name in one.linears
        }

    @property
    def counts(self) -> dict[int, int]:
        """How many linears got each width."""
        widths = [one.width for one in self.groups for _ in one.linears]
        return {width: widths.count(width) for width in sorted(set(widths))}

    def in_words(self) -> str:
        """Return what was allotted, in a line."""
        told = ", ".join(f"{count} of {width} bits" for width, count in self.counts.items())
        return f"{self.average:.4f} bits per weight of {self.asked:g} allowed: linears, {told}"
