"""A model without its weights, and the lazy reading of those weights from safetensors."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.initialization import meta_device_safe_creation_ops, no_tie_weights

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.experts.merging import Merged, first_missing, merged
from normtweak_core.model.architecture import (
    check_model_folder,
    first_line,
    read_config,
    readable_by_transformers,
)
from normtweak_core.model.checkpoint import FLOATS, StoredTensor, no_float, stored_tensors
from normtweak_core.stored import is_finite, read_tensor
from normtweak_core.vision.kinds import auto_class

# Causal masks, and the number in their place, which old checkpoints of GPT kinds hold.
OLD_MASK = re.compile(r"att(entio)?n\.(masked_)?bias$")


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the transformers config of a model folder.

    Raises:
        InputError: transformers does not know this kind of model.
    """
    try:
        with readable_by_transformers(folder) as readable:
            return AutoConfig.from_pretrained(
                readable, local_files_only=True, trust_remote_code=False
            )
    except (ValueError, KeyError) as error:
        raise InputError(
            f"transformers must know the model; it does not know {folder}: {first_line(error)}"
        ) from error


def opener(folder: Path) -> Any:
    """Return the class of transformers that opens the model of a folder."""
    return getattr(transformers, auto_class(read_config(folder)))


def build_skeleton(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a folder with all parameters and buffers on the meta device.

    Raises:
        InputError: The folder holds no float decoder that transformers knows.
    """
    check_model_folder(folder)
    config = load_config(folder)
    try:
        with torch.device("meta"), meta_device_safe_creation_ops(), no_tie_weights():
            model = opener(folder).from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise InputError(
            f"the model must be a causal language model of transformers; {folder} is not: "
            f"{first_line(error)}"
        ) from error
    return model.eval().requires_grad_(False)


class LazyWeights:
    """The stored tensors of a checkpoint under the names that the model in memory has for them.

    Both loading rules are those of ``from_pretrained``: names may lack or carry the base model's
    prefix and follow transformers' renamings; dtypes are the skeleton's, except for modules that
    a half-precision model keeps in float32. A weight that stacks the matrices of experts is read
    from them, one by one.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, dtype: torch.dtype, device: str):
        self._device = device
        self._finite: set[str] = set()  # which tensors have been looked at
        # Names and dtypes as built: the caller goes on to change the model.
        self._targets = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
        self._stored = _match_names(model, folder)
        kept = set(model._keep_in_fp32_modules_strict or ())
        if dtype is torch.float16:
            kept |= set(model._keep_in_fp32_modules or ())
        self._float32 = re.compile("|".join(kept)) if kept and dtype.itemsize == 2 else None
        self.missing = {name for name in self._targets if name not in self._stored}
        untied = sorted(name for name in self.missing if not _is_tied(model, name, self._stored))
        if untied:
            raise InputError(
                f"{folder} must hold every weight of {type(model).__name__}; {len(untied)} are "
                f"absent, {untied[0]} first. Fetch or save the model again."
            )

    def names(self, prefix: str) -> list[str]:
        """Return the names in memory of the stored tensors below a prefix ('' for all)."""
        return [name for name in self._stored if not prefix or name.startswith(prefix + ".")]

    def stored_names(self, name: str) -> list[str]:
        """Return the names in the files of what makes a tensor: of a stack, from top to bottom."""
        return [stored for stored, _ in self._stored[name]]

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Return the named tensors as fresh copies on the device, in the dtype of the model.

        Raises:
            NonFiniteError: A tensor has a value that is NaN or infinite.
            InputError: A tensor has another shape than the config says.
        """
        tensors: dict[str, Tensor] = {}
        for name in names:
            for index, (_, place) in enumerate(self._stored[name]):
                self._put(tensors, name, index, read_tensor(place))
        return tensors

    def finish(self, module: nn.Module, prefix: str) -> None:
        """Do what a model's reader does once the tensors of a module are in their place: nothing.

        Args:
            module: A block, or all that lies outside the blocks.
            prefix: Its name in the model.
        """

    def _put(self, tensors: dict[str, Tensor], name: str, index: int, stored: Tensor) -> None:
        """Put a stored tensor, or one of several parts of a stack, where it belongs."""
        count, (shape, _) = len(self._stored[name]), self._targets[name]
        if count == 1:
            tensors[name] = self._converted(name, stored)
            return
        part = self._converted(name, stored, torch.Size([shape[0] * shape[1] // count, shape[2]]))
        if name not in tensors:
            tensors[name] = torch.empty(shape, dtype=part.dtype, device=part.device)
        tensors[name].view(count, *part.shape)[index] = part

    def _converted(self, name: str, stored: Tensor, part: torch.Size | None = None) -> Tensor:
        """Return a checked copy of what shares memory with its file; a part is one of a stack."""
        shape, dtype = self._targets[name]
        shape = part or shape
        if stored.shape != shape:
            raise InputError(
                f"the weight {name} must have the shape {list(shape)} that config.json implies; "
                f"it is stored as {list(stored.shape)}. Fetch or save the model again."
            )
        if self._float32 is not None and self._float32.search(name):
            dtype = torch.float32
        # A copy even where nothing changes: pages of the file must not stay mapped, and the
        # alignment of the memory must not depend on where in the file a tensor lies.
        tensor = stored.to(dtype=dtype, copy=True)
        if name in self._finite:
            return tensor.to(self._device)
        if dtype.is_floating_point and not is_finite(tensor):
            was = f"once cast to {dtype}" if is_finite(stored) else "as stored"
            raise NonFiniteError(
                f"every weight must be finite; {name} has NaN or infinite values {was}. "
                "Fetch the model again or choose another model.dtype."
            )
        if part is None:
            self._finite.add(name)
        return tensor.to(self._device)


def assign(module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Put tensors, named from the model's root, in their place at or below ``module``."""
    for name, tensor in tensors.items():
        inside = name.removeprefix(f"{prefix}.") if prefix else name
        parent, _, leaf = inside.rpartition(".")
        owner = module.get_submodule(parent)
        if leaf not in owner._buffers:
            tensor = nn.Parameter(tensor, requires_grad=False)
        tensor._is_hf_initialized = True  # what transformers' initialization leaves alone
        setattr(owner, leaf, tensor)


def _allocate_buffers(modules: Iterable[nn.Module], device: str) -> None:
    """Move the buffers that no checkpoint holds (rotary frequencies, masks) off the meta device.

    Their values are left to `PreTrainedModel.initialize_weights`, which computes them for
    ``from_pretrained`` too: from the config, in float32, never cast with the model. One that it
    passes over stays NaN, so that its use cannot go unseen.
    """
    for owner in modules:
        for name in owner._non_persistent_buffers_set:
            buffer = owner._buffers.get(name)
            if buffer is not None and buffer.is_meta:
                unset = torch.nan if buffer.is_floating_point() else 0
                owner._buffers[name] = torch.full_like(buffer, unset, device=device)


def compute_buffers(model: PreTrainedModel, modules: Iterable[nn.Module], device: str) -> None:
    """Let transformers compute what no checkpoint holds of some modules of a model.

    It passes over all that is marked as read from the checkpoint. Some families overwrite rows of
    a weight in spite of that (Youtu its padding's embedding), so leaves that were read are marked
    as a whole.

    Args:
        model: All of it; modules around others compute buffers inside them as well.
        modules: Those whose buffers are to be computed, their parameters being there.
        device: Where to.
    """
    found = list(modules)
    _allocate_buffers(found, device)
    for part in found:
        is_leaf = not part._modules and not part._non_persistent_buffers_set
        if is_leaf and part._parameters:
            part._is_hf_initialized = True
    model.initialize_weights()


def mark_initialized(module: nn.Module) -> None:
    """Tell `PreTrainedModel.initialize_weights` to pass over all of a module."""
    for part in module.modules():
        part._is_hf_initialized = True


def check_weights(model: PreTrainedModel, folder: Path) -> None:
    """Accept weight files of which every tensor is a plain float and is used by the model.

    What the model does without is what transformers says that it ignores, and what old versions
    of it stored of buffers that are computed now.

    Raises:
        InputError: A tensor is something else, as in a quantized model without its config.
    """
    floats = {name for name, t in model.state_dict().items() if t.is_floating_point()}
    coded, unused = {}, {}
    for stored_name, place, name, _ in _renamed(model, folder):
        if name in floats and place.dtype not in FLOATS:
            coded[stored_name] = place
        elif name not in model.state_dict():
            unused[stored_name] = place
    if coded:
        raise no_float(folder, coded)
    ignored = _ignored(model, unused)
    foreign = [name for name in unused if name not in ignored]
    if foreign:
        found = unused[foreign[0]]
        raise InputError(
            f"every stored tensor must belong to the model; {len(foreign)} of {folder} "
            f"{'is' if len(foreign) == 1 else 'are'} not used by {type(model).__name__}, "
            f"{foreign[0]} ({found.dtype}, {list(found.shape)}) first: a scale of a quantized "
            "model, or a part of another one. Give the float model, or save it again with "
            "save_pretrained."
        )


def used_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the stored tensors that the model of a folder reads, by their names in the files.

    Raises:
        InputError: The folder holds no float decoder that transformers knows.
    """
    model = build_skeleton(folder, torch.float32)
    held = model.state_dict().keys()
    return {stored: place for stored, place, name, _ in _renamed(model, folder) if name in held}


def _ignored(model: PreTrainedModel, unused: dict[str, StoredTensor]) -> set[str]:
    """Return which of the tensors that a model has no place for it need not have one for."""
    told = SimpleNamespace(missing_keys=set(), unexpected_keys=set(unused))
    model._adjust_missing_and_unexpected_keys(told)  # what from_pretrained asks as well
    computed = {name for name, _ in model.named_non_persistent_buffers()}
    return {
        name
        for name, place in unused.items()
        if name not in told.unexpected_keys
        or name in computed
        or f"{model.base_model_prefix}.{name}" in computed
        or (OLD_MASK.search(name) and len(place.shape) in (0, 4))
    }


Renamed = tuple[str, StoredTensor, str, Merged | None]


def _renamed(model: PreTrainedModel, folder: Path) -> Iterator[Renamed]:
    """Yield each stored tensor with its name in memory, and how it is merged with others there."""
    targets = dict.fromkeys(model.state_dict(), True)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    for stored_name, place in stored_tensors(folder).items():
        name, pattern = rename_source_key(
            stored_name, renamings, converters, model.base_model_prefix, targets
        )
        if name not in targets:  # a renaming may have hit a name that was right
            name, pattern = rename_source_key(stored_name, [], [], model.base_model_prefix, targets)
        how = None if pattern is None else merged(converters, pattern, stored_name)
        yield stored_name, place, name, how


Parts = list[tuple[str, StoredTensor]]  # names in the files and places of what makes a tensor


def _match_names(model: PreTrainedModel, folder: Path) -> dict[str, Parts]:
    """Return what makes each tensor in memory: one stored tensor, or those of a stack in order."""
    check_weights(model, folder)
    matched: dict[str, dict[tuple[int, int] | None, tuple[str, StoredTensor]]] = {}
    targets = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for stored_name, place, name, how in _renamed(model, folder):
        if name not in targets:
            continue
        if how is not None and (how.place is None or len(targets[name]) != 3):
            raise InputError(
                f"each weight must be stored as the model holds it, or expert by expert; "
                f"transformers makes {name} of tensors of {folder} in another way, {stored_name} "
                "among them, which is not supported yet. Choose another model."
            )
        parts, where = matched.setdefault(name, {}), None if how is None else how.place
        if where in parts or (parts and None in (where, *parts)):
            raise InputError(
                f"each weight must be stored once; {folder} holds {name} as "
                f"{next(iter(parts.values()))[0]} and as {stored_name}. Load it with transformers "
                "and save it again."
            )
        parts[where] = (stored_name, place)
    return {name: _in_order(name, parts, targets[name], folder) for name, parts in matched.items()}


def _in_order(name: str, parts: dict, shape: torch.Size, folder: Path) -> Parts:
    """Return the parts of a tensor from top to bottom, once all of them are there."""
    if None in parts:
        return list(parts.values())
    if missing := first_missing(parts, shape[0]):
        raise InputError(
            f"{folder} must hold every matrix of every expert; of {name} it lacks matrix "
            f"{missing[1]} of expert {missing[0]}. Fetch or save the model again."
        )
    return [parts[place] for place in sorted(parts)]


def _is_tied(model: PreTrainedModel, name: str, stored: dict) -> bool:
    """Say whether an absent weight shares the storage of one that is there."""
    ties = model.all_tied_weights_keys
    source = ties.get(name, name)
    group = {source, *(target for target, origin in ties.items() if origin == source)}
    return len(group) > 1 and any(member in stored for member in group)
