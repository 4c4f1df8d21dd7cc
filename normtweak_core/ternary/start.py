"""Which float type will hold a ternary model, foreseen before its training.

Training takes hours, and what readers multiply follows from the scales of weights and activations:
those of the first step are known, and training moves them by less than an order of magnitude.
"""

from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from normtweak_core.export.float_type import DTYPES, FloatModelTrial
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.ternary.arithmetic import linear_problem
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.finished import FinishedLayers
from normtweak_core.ternary.inference import TernaryInference
from normtweak_core.ternary.linear import TrainedLinear
from normtweak_core.ternary.surgery import SurgeryPlan, apply_surgery

# How much the product of two scales may grow while training goes on.
HEADROOM = 8


class StartTrial:
    """Runs the float model in a float type, and each linear as readers would run it ternary."""

    def __init__(
        self,
        source: Path,
        rows: Int64[Tensor, "rows seq"],
        plan: SurgeryPlan,
        config: TernaryConfig,
        device: str,
    ):
        """Note what to run; nothing is read yet."""
        self._source, self._rows, self._device = source, rows, device
        self._plan, self._config = plan, config
        self._float_model = FloatModelTrial(source, rows, None, device)
        self._model: nn.Module | None = None

    def __call__(self, name: str, spare: int) -> str | None:
        """Return why a float type will not hold the model; None where it will."""
        if name == "float32":
            return None
        return self._float_model(name, spare) or self._linears(name, HEADROOM if spare else 0)

    @torch.no_grad()
    def _linears(self, name: str, spare: int) -> str | None:
        """Run the float model; return what is wrong with the first linear that fails, if any."""
        if self._model is None:
            self._model = load_causal_lm(self._source, torch.float32, self._device)
            apply_surgery(self._model, self._plan, self._config)
        model, problems, handles = self._model, [], []
        layers = FinishedLayers(model, DTYPES[name])

        def look(linear: str) -> object:
            def judge(_: TrainedLinear, args: tuple[Tensor, ...]) -> None:
                if problems:
                    return
                run = TernaryInference(layers[linear], self._plan.eps)
                why = linear_problem(linear, run, args[0].float().cpu(), DTYPES[name], spare)
                problems.extend([] if why is None else [why])

            return judge

        for linear in layers:
            handles.append(model.get_submodule(linear).register_forward_pre_hook(look(linear)))
        try:
            model(input_ids=self._rows.to(self._device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return problems[0] if problems else None
