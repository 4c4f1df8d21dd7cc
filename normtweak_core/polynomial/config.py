"""What the polynomial study computes: samples, network, float training, grid of cells, LoRA.

Defaults are those of the full study. Nothing here imports torch.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

WIDTHS = (8.0, 4.0, 2.0, 1.58, 1.0)  # bits a weight
EXAMPLES = 6  # samples of the test set that the figure shows, and the fewest it may hold
Start = Literal["pretrained", "random"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def width_name(bits: float) -> str:
    """Return what people call a width, such as ``1.58 bits``."""
    return f"{bits:g} bit" if bits == 1 else f"{bits:g} bits"


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError(f"every value of a list must stand there once; found {values}.")
    return values


def _widths(values: list[float]) -> list[float]:
    if odd := [value for value in values if value not in WIDTHS]:
        raise ValueError(f"grid.bits may hold 8, 4, 2, 1.58 and 1; found {odd[0]:g}: leave it out")
    return _distinct(values)


class SamplesConfig(BaseModel, frozen=True, extra="forbid"):
    """Polynomial fits to train and to test with."""

    train: int = Field(2_000_000, ge=1, description="Samples to train with.")
    test: int = Field(20_000, ge=EXAMPLES, description="Samples the test loss is a mean of.")
    degree: int = Field(6, ge=1, le=6, description="Of the fits; 6 passes through all 7 points.")


class NetworkConfig(BaseModel, frozen=True, extra="forbid"):
    """The network: 14 numbers in, hidden layers with GELU, 200 numbers out."""

    hidden_layers: int = Field(4, ge=1, le=16, description="Layers before the last one.")
    hidden_width: int = Field(512, ge=1, description="Outputs of each.")


class FloatTrainingConfig(BaseModel, frozen=True, extra="forbid"):
    """The float training, whose result is called pretrained."""

    epochs: Rate = Field(41, description="Passes over the training samples; may be a fraction.")
    batch: int = Field(256, ge=1, description="Samples a step.")
    lr: Rate = Field(1e-3, description="Learning rate at the start; a cosine takes it to zero.")


class GridConfig(BaseModel, frozen=True, extra="forbid"):
    """The cells: every width from every start at every learning rate."""

    bits: Annotated[list[float], AfterValidator(_widths)] = Field(
        list(WIDTHS), min_length=1, description="Widths of a weight: 8, 4, 2, 1.58 or 1."
    )
    starts: Annotated[list[Start], AfterValidator(_distinct)] = Field(
        ["pretrained", "random"], min_length=1, description="Weights a cell begins with."
    )
    learning_rates: Annotated[list[Rate], AfterValidator(_distinct)] = Field(
        [1e-3, 1e-4], min_length=1, description="At the start; a cosine takes them to zero."
    )
    epochs: Rate = Field(10, description="Passes over the training samples, every cell.")
    batch: int = Field(256, ge=1, description="Samples a step.")


class LoraConfig(BaseModel, frozen=True, extra="forbid"):
    """A row of cells in which only a low-rank update of the float weights is trained."""

    enabled: bool = Field(True, description="Add the row: one cell for every width of the grid.")
    rank: int = Field(32, ge=1, description="Of the update B A of every layer.")
    lr_scale: Rate = Field(
        1 / 2500,
        description="Learning rate at the start, in mean distances between levels of the layer.",
    )


class Cell(BaseModel, frozen=True, extra="forbid"):
    """One quantized training of the study."""

    bits: float
    start: Start
    lr: float  # where a LoRA is trained: in mean distances between levels
    rank: int | None = None  # of the LoRA; None: the weights are trained


def cells_of(grid: GridConfig, lora: LoraConfig) -> list[Cell]:
    """Return the cells of the grid, width by width, then those of the LoRA."""
    cells = [
        Cell(bits=bits, start=start, lr=lr)
        for bits in grid.bits
        for start in grid.starts
        for lr in grid.learning_rates
    ]
    if lora.enabled:
        cells += [
            Cell(bits=bits, start="pretrained", lr=lora.lr_scale, rank=lora.rank)
            for bits in grid.bits
        ]
    return cells
