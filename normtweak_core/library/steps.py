"""The steps of one call of `quantize`, in the order in which `normtweak quantize` takes them."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normtweak_core.calibration.given import given_set
from normtweak_core.calibration.length import effective_length
from normtweak_core.calibration.quality import QualityReport, judged
from normtweak_core.calibration.sets import CalibrationSet, build_calibration_set
from normtweak_core.dry_run import dry_run
from normtweak_core.export.float_type import DTYPES, FloatTypeChoice, choose_export_dtype
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.export.foreign.kept import require_codes_kept
from normtweak_core.export.foreign.source import (
    BaseSource,
    read_base,
    require_made_of,
    require_order,
)
from normtweak_core.export.formats.checks import (
    GPTQ_READER_DONE,
    FloatTypeError,
    check_exportable,
    linear_shapes,
    next_float_type,
    refuse_experts,
)
from normtweak_core.export.gguf.grid_checks import check_grid_exportable
from normtweak_core.export.manifest import dtype_name
from normtweak_core.export.record import ExportRecord
from normtweak_core.export.verification.probe import probe_rows
from normtweak_core.export.writer import write_export
from normtweak_core.library.progress import Progress
from normtweak_core.library.settings import Settings
from normtweak_core.model.architecture import read_config
from normtweak_core.model.checkpoint import stored_names
from normtweak_core.model.fingerprint import fingerprint
from normtweak_core.model.layout import block_list
from normtweak_core.model.source import (
    check_model_folder,
    model_context,
    resolve_device,
    resolve_source,
    with_dtype,
)
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.model.tokenizer_files import require_reader_files
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import MixedBits
from normtweak_core.quantization.dense_model import dense_model, put_scales
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.report import BlockReport
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.scratch import scratch_folder
from normtweak_core.spread import whole_or_spread
from normtweak_core.tweak.final import (
    TuningWindows,
    final_tune,
    put_tuned,
    walked_targets,
)
from normtweak_core.tweak.report import FinalTuneReport
from normtweak_core.vision.images import check_images
from normtweak_core.vision.kinds import check_image_recipe, refuse_images
from normtweak_core.vision.windows import Windows
from normtweak_core.widths.allotment import allot
from normtweak_core.widths.measuring import Measuring
from normtweak_core.widths.report import Allotment
from normtweak_core.widths.trial import Trials, load_trials, save_trials

ROOT = Path(__file__).parents[2]  # where `make reader-gptq` puts the environment that reads gptq
# Of a block when a part of it begins; roughly, for the bar.
SHARE_DONE = {"solve": 0.1, "tweak": 0.6, "train": 0.7, "finish": 0.9}
ABOUT = "recipe holds the settings of the call of normtweak_core.quantize that wrote this folder."


@dataclass
class Blocks:
    """Finished blocks and norms, in one float type."""

    dtype: torch.dtype
    layers: dict[str, QuantizedWeight] = field(default_factory=dict)  # by full module name
    norms: dict[str, Tensor] = field(default_factory=dict)  # float32 masters, by full name
    reports: list[BlockReport] = field(default_factory=list)
    final_tune: FinalTuneReport | None = None
    allotment: Allotment | None = None  # where the settings leave the widths to a budget

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the layers."""
        return {name: weight.bits for name, weight in self.layers.items()}


class Work:
    """A float model on its way to an export."""

    def __init__(self, settings: Settings, tell: Progress):
        """Find the model and take a few tokens through all that will be done to it.

        Args:
            settings: Everything that decides the result.
            tell: Is told how far the work is.

        Raises:
            InputError: There is no such model or device, a run cannot follow the model, or the
                format cannot hold it.
        """
        self.settings, self._tell = settings, tell
        self.source = resolve_source(settings.model)
        folder = self.source.path
        check_model_folder(folder)
        require_reader_files(folder)
        linears = linear_shapes(folder)
        self._base: BaseWeights | None = None
        self.base: BaseSource | None = None
        if settings.base is not None:
            refuse_images(read_config(folder), "base")
            self.base = read_base(settings.base)
            require_made_of(self.base, folder, linears)
            settings = self.settings = self.base.gridded(settings)
            require_order(settings.export, self.base)
            self._base = BaseWeights(self.base.folder, folder)
        if settings.block_training.enabled:
            refuse_experts(linears, "block_training")
        check_exportable(
            settings.export,
            settings.quantization,
            linears,
            reader_available=(ROOT / GPTQ_READER_DONE).is_file(),
        )
        images, mixed = settings.calibration.images, settings.quantization.bits
        check_image_recipe(images, isinstance(mixed, MixedBits), read_config(folder))
        check_images(images, settings.calibration.samples)
        check_grid_exportable(settings.export, settings.quantization, read_config(folder), linears)
        self.device = resolve_device(settings.model.device)
        self._dtype = DTYPES[with_dtype(settings.model, folder).dtype]
        rounds = settings.quantization.activation_bits is not None
        num_blocks = block_list(stored_names(folder))[1]
        form, mixed = settings.export.format, isinstance(settings.quantization.bits, MixedBits)
        where = self._dtype, self.device
        dry_run(folder, *where, num_blocks, rounds=rounds, form=form, mixed=mixed)

    def calibrated(
        self, given: Any, samples: int | None, length: int | None
    ) -> tuple[CalibrationSet, QualityReport]:
        """Return the calibration set, and what is known of it.

        Args:
            given: Texts or token ids; None: what the settings say.
            samples: Windows to draw from texts.
            length: Tokens of each.

        Raises:
            InputError: It is not usable.
        """
        config, seed = self.settings.calibration, self.settings.seed
        context = model_context(self.source.path)
        tokenizer = load_tokenizer(self.source.path)
        # Only writing takes the whole model.
        writes = given is None and config.source == "generated"
        opened = whole_or_spread if writes else StreamedModel
        model = opened(self.source.path, self._dtype, self.device)
        inner = model if writes else model.model
        if given is not None:
            made = given_set(given, tokenizer, inner, samples, length, seed, context)
        else:
            tokens = effective_length(config.length, context)
            made = build_calibration_set(
                config,
                tokenizer,
                inner,
                tokens,
                seed,
                self._progress("calibration"),
                folder=self.source.path,
            )
        return made, judged(made, tokenizer, model)[0]

    def exported(
        self, calibration: CalibrationSet, out: Path
    ) -> tuple[ExportRecord, Blocks, FloatTypeChoice]:
        """Return the export, what it was made of, and how its float type was chosen.

        The scales are rounded to the float type before anything is quantized: in another one the
        blocks are others.

        Raises:
            FloatTypeError: The float type asked for does not hold the model, or none does.
        """
        windows, export = calibration.windows, self.settings.export
        choice = choose_export_dtype(
            export,
            self.source.path,
            probe_rows(self.source.path, calibration.input_ids),
            self.settings.quantization,
            self.device,
            self._base,
        )
        while True:
            blocks = self._tuned(self._quantized(windows, choice.dtype), windows)
            try:
                return self._written(blocks, calibration, out), blocks, choice
            except FloatTypeError as error:
                other = next_float_type(export, error, choice.refused)
                refused = choice.refused | {error.dtype: error.why}
                choice = FloatTypeChoice(DTYPES[other], refused)

    def _quantized(self, windows: Windows, dtype: torch.dtype) -> Blocks:
        """Return all blocks, quantized and their norms tweaked."""
        folder = self.source.path
        model = StreamedModel(folder, self._dtype, self.device)
        made, total = (
            Blocks(dtype, allotment=self._allotted(model, windows, dtype)),
            model.num_blocks,
        )
        walk = BlockWalk(model, windows, self._base, folder, self._dtype)
        streams = walk.start()
        for index in range(total):
            done = quantize_block(
                walk.load(index),
                streams,
                walk.runner(index),
                BlockPlan(
                    index,
                    total,
                    self.settings.quantization,
                    self.settings.norm_tweak,
                    dtype,
                    self.settings.block_training,
                    self.settings.seed,
                    made.allotment.of_block(index) if made.allotment else {},
                ),
                lambda part, at=index: self._tell("blocks", at + SHARE_DONE[part], total),
                given=walk.given(index),
            )
            streams, prefix = done.streams, walk.model.block_prefix(index)
            made.layers |= {f"{prefix}.{name}": weight for name, weight in done.layers.items()}
            made.norms |= {f"{prefix}.{name}": norm for name, norm in done.norms.items()}
            made.reports.append(done.report)
            self._tell("blocks", index + 1, total)
        return made

    def _allotted(
        self, model: StreamedModel, windows: Windows, dtype: torch.dtype
    ) -> Allotment | None:
        """Return the widths that cost least within the budget, where there is one."""
        config, total = self.settings.quantization, model.num_blocks
        if not isinstance(config.bits, MixedBits):
            return None
        costs = []
        with scratch_folder("trial") as folder:
            paths = [folder / f"block-{index}.safetensors" for index in range(total)]
            trials = Trials(BlockWalk(model, windows), config, dtype)
            for index, path in enumerate(paths):
                save_trials(path, trials.block(index))
                self._tell("trial", index + 1, total)
            del trials
            measuring = Measuring(
                BlockWalk(model, windows), lambda index: load_trials(paths[index], config)
            )
            for index in range(total):
                costs += measuring.block(index)
                self._tell("sensitivity", index + 1, total)
        return allot(costs, config, self.settings.export.format, dtype_name(dtype))

    def _tuned(self, made: Blocks, windows: Windows) -> Blocks:
        """Return the same with norms, and scales, tuned against the float model's logits."""
        config = self.settings.final_tune
        if not config.enabled:
            return made
        folder, tell = self.source.path, self._progress("final tune")
        float_model = StreamedModel(folder, self._dtype, self.device)
        tuned_on = TuningWindows.of(windows)
        expected = walked_targets(float_model, tuned_on)
        where = self._dtype, made.dtype, self.device
        model = dense_model(folder, made.layers, made.norms, *where, self._others)
        if config.scales:
            put_scales(model, made.layers, made.dtype)
        made.final_tune, trained = final_tune(
            model,
            expected,
            tuned_on,
            config,
            made.norms,
            made.dtype,
            self.settings.seed,
            lambda step, steps, loss: tell(step, steps),
        )
        norms, scales = put_tuned(model, trained, made.dtype)
        made.norms |= norms
        for name, tuned in scales.items():
            made.layers[name] = replace(made.layers[name], scales=tuned)
        return made

    @property
    def _others(self) -> Mapping[str, Tensor]:
        """What takes the place of the float model's other parameters."""
        return {} if self._base is None else self._base.others

    def _written(self, made: Blocks, calibration: CalibrationSet, out: Path) -> ExportRecord:
        if self._base is not None:
            self._base.require_held(made.dtype, self.settings.export.format)
        folder = self.source.path
        settings = self.settings.model_dump(mode="json")
        if calibration.source in ("text", "tokens") and settings["calibration"]["path"] is None:
            samples, length = calibration.input_ids.shape
            given = {"source": calibration.source, "samples": samples, "length": length}
            settings["calibration"] = given
        details = {
            "about": ABOUT,
            "recipe": settings,
            "lineage": {
                "source_model": self.source.name,
                "source_revision": self.source.revision or "",
                "source_sha256": fingerprint(folder).sha256,
                **({} if self.base is None else self.base.facts()),
                "calibration_sha256": calibration.sha256,
            },
            "blocks": [report.model_dump(mode="json") for report in made.reports],
            "final_tune": made.final_tune and made.final_tune.model_dump(mode="json"),
        }
        record = write_export(
            out,
            folder,
            made.layers,
            ChainMap(made.norms, self._others),
            self.settings.export,
            dtype=made.dtype,
            windows=calibration.input_ids,
            details=details,
            widths=made.widths,
            progress=self._progress("export"),
            origin=None if self.base is None else self.base.origin(self.source.name),
            image_windows=0 if calibration.images is None else len(calibration.images),
        )
        if self._base is not None:
            require_codes_kept(record.folder, self._base)
        return record

    def _progress(self, what: str) -> Any:
        return lambda done, total: self._tell(what, done, total)
