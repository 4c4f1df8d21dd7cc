"""Text generation with a plain Hugging Face folder, behind MLflow's python_function interface.

This file is stored inside each registered model and loaded from there, so it imports nothing but
what requirements.txt beside it names. The model has no schema of its inputs: MLflow would make a
table of whatever it is given, in which a list of texts, the columns of a frame and the fields of a
chat message can no longer be told apart.
"""

import copy
import json
from pathlib import Path

import torch
from jinja2 import TemplateError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

ACCEPTED = (
    "predict takes a text, a list of texts, a DataFrame or dict with texts as `prompt`, or chat "
    'messages as a list of {"role": ..., "content": ...} or as `messages` of a dict; options go '
    "into params"
)
# Of a generation_config.json: they have no use without sampling, where transformers warns of them.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff")
SAMPLING += ("eta_cutoff",)
CONTEXT = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
CONTEXT += ("max_sequence_length", "n_ctx")


class InputRefusedError(MlflowException, ValueError):
    """What was given to predict is nothing it takes; a server answers 400 with the message."""

    def __init__(self, message):
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class TextGeneration:
    """A causal language model that continues prompts; greedy unless a temperature is given."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        # One that reads images is given text alone.
        self._sees = kind.endswith("ForConditionalGeneration")
        reader = AutoModelForImageTextToText if self._sees else AutoModelForCausalLM
        self.model = reader.from_pretrained(folder, dtype="auto", trust_remote_code=False).eval()
        if torch.cuda.is_available():
            self.model = self.model.to("cuda")
        self._sampling = copy.deepcopy(self.model.generation_config)
        self._sampling.max_length = None  # it would contradict max_new_tokens
        self._greedy = copy.deepcopy(self._sampling)
        for name in SAMPLING:
            setattr(self._greedy, name, None)
        config = self.model.config.get_text_config()
        lengths = [getattr(config, name, None) for name in CONTEXT]
        self._context = next((one for one in lengths if isinstance(one, int)), None)

    def predict(self, data, params=None):
        """Return the continuation of each prompt, without the prompt.

        Args:
            data: A text, a list, array or series of texts, a DataFrame with a column ``prompt``
                (others are not read), a dict of ``prompt``, or the messages of one chat, as a list
                or as ``messages`` of a dict, which the tokenizer's chat template turns into a
                prompt.
            params: max_new_tokens; temperature (0: greedy); seed of the sampling.

        Raises:
            InputRefusedError: It is none of these, a prompt and max_new_tokens are longer together
                than the model's context, or the tokenizer has no chat template.
        """
        how = _options(params or {})
        data = _plain(data)
        if isinstance(data, dict):
            if len(data) != 1 or not set(data) <= {"prompt", "messages"}:
                raise InputRefusedError(f"{ACCEPTED}; found a dict of {_names(data)}.")
            ((key, data),) = data.items()
            if key == "messages" and not _is_chat(data):
                raise InputRefusedError(f"{ACCEPTED}; found {_what(data)} as `messages`.")
            if key == "prompt" and _is_chat(data):
                raise InputRefusedError(f"{ACCEPTED}; found chat messages as `prompt`.")
        if _is_chat(data):
            return [self._continue(self._chat_ids(data), how, "the chat")]
        prompts = [data] if isinstance(data, str) else data
        if not isinstance(prompts, list) or not prompts:
            raise InputRefusedError(f"{ACCEPTED}; found {_what(prompts)}.")
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise InputRefusedError(f"{ACCEPTED}; found {_what(prompt)} at place {place}.")
            _check_text(prompt, f"prompt {place}")
        # All are looked at before the first is answered. One prompt at a time then: padding would
        # make an answer depend on its neighbours.
        ids = [self._ids(prompt, place) for place, prompt in enumerate(prompts)]
        for place, one in enumerate(ids):
            self._check_length(one, how, f"prompt {place}")
        return [self._continue(one, how, f"prompt {place}") for place, one in enumerate(ids)]

    def _ids(self, prompt, place):
        ids = self.tokenizer(prompt, verbose=False)["input_ids"]
        if ids:
            return list(ids)
        start = self.tokenizer.bos_token_id
        if start is None:
            start = self.tokenizer.eos_token_id
        if start is None:
            raise InputRefusedError(
                f"A prompt must hold at least one token where the tokenizer has none to start "
                f"with; prompt {place} holds none."
            )
        return [start]

    def _chat_ids(self, messages):
        for message in messages:
            _check_text(message["content"], "a message")
        if not self.tokenizer.chat_template:
            raise InputRefusedError(
                "Chat messages need a tokenizer with a chat template, and this one has none: give "
                "the prompt as a text."
            )
        if self._sees:  # their templates look for the parts of a content
            messages = [
                one | {"content": [{"type": "text", "text": one["content"]}]} for one in messages
            ]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError) as error:
            raise InputRefusedError(
                f"The chat template of this model refuses the messages: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _check_length(self, ids, how, which):
        new = how["max_new_tokens"]
        if self._context is not None and len(ids) + new > self._context:
            raise InputRefusedError(
                f"A prompt and max_new_tokens must fit into the model's context of {self._context} "
                f"tokens together; {which} has {len(ids)} tokens and max_new_tokens is {new}: "
                "shorten one of them."
            )

    def _continue(self, ids, how, which):
        self._check_length(ids, how, which)
        device = self.model.device
        ids = torch.tensor([ids], dtype=torch.int64, device=device)
        sampled = how["temperature"] > 0
        self.model.generation_config = self._sampling if sampled else self._greedy
        options = {"temperature": how["temperature"]} if sampled else {}
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(how["seed"])
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=how["max_new_tokens"],
                pad_token_id=self._pad(),
                do_sample=sampled,
                **options,
            )[0]
        # Decoded together, because some tokenizers drop the space in front of a first token.
        before = self.tokenizer.decode(ids[0], skip_special_tokens=True)
        return self.tokenizer.decode(output, skip_special_tokens=True)[len(before) :]

    def _pad(self):
        ends = self.model.generation_config.eos_token_id
        first = ends[0] if isinstance(ends, list) else ends
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, first)
        return next((one for one in known if one is not None), None)


def _options(params):
    """Return the parameters of a call, checked."""
    found = {"max_new_tokens": 64, "temperature": 0.0, "seed": 0} | params
    unknown = sorted(set(found) - {"max_new_tokens", "temperature", "seed"})
    if unknown:
        raise InputRefusedError(
            f"params are max_new_tokens, temperature and seed; found {', '.join(unknown)}."
        )
    how = {
        "max_new_tokens": int(found["max_new_tokens"]),
        "temperature": float(found["temperature"]),
        "seed": int(found["seed"]),
    }
    if how["max_new_tokens"] < 1 or not 0 <= how["temperature"] < float("inf"):
        raise InputRefusedError(
            "max_new_tokens must be at least 1 and temperature a number of at least 0; found "
            f"{how['max_new_tokens']} and {how['temperature']:g}."
        )
    return how


def _plain(data):
    """Return frames, arrays, series and tuples as what they hold, at any depth."""
    if hasattr(data, "iloc") and getattr(data, "ndim", 1) == 2:
        columns = data.columns.tolist()
        if columns.count("prompt") != 1:
            named = _names(columns)
            raise InputRefusedError(f"{ACCEPTED}; found a DataFrame with the columns {named}.")
        data = data["prompt"]
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(one) for one in data] if isinstance(data, list | tuple) else data


def _is_chat(data):
    """Tell whether these are the messages of a chat: role and content, both texts."""
    return (
        isinstance(data, list)
        and bool(data)
        and all(
            isinstance(one, dict)
            and isinstance(one.get("role"), str)
            and isinstance(one.get("content"), str)
            for one in data
        )
    )


def _check_text(text, which):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputRefusedError(
            f"A text must be valid Unicode; {which} has half a character at {error.start}."
        ) from error


def _names(keys):
    return ", ".join(str(key) for key in keys) or "nothing"


def _what(data):
    """Return what something is, in words."""
    if data is None or isinstance(data, int | float | bool):
        return repr(data)
    if isinstance(data, list | dict) and not data:
        return f"an empty {type(data).__name__}"
    return f"a {type(data).__name__}"


def _load_pyfunc(folder):
    return TextGeneration(Path(folder))
