"""Tiny random models that read images, written to disk with tokenizer and processor."""

import json
from pathlib import Path

import numpy
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY, IMAGE = 96, 95
SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", 92: "<end>", 93: "<start>", 94: "<video>"}
SPECIAL |= {IMAGE: "<image>"}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADED = TEXT | {"head_dim": 8}
SIDE, PATCH = 16, 8
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
# More blocks and weights than the text tower, which must be found all the same.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
SPANS = {"image_token_id": IMAGE, "video_token_id": 94}
SPANS |= {"vision_start_token_id": 93, "vision_end_token_id": 92}
QWEN = {"depth": 4, "num_heads": 4, "patch_size": 4, "hidden_size": 32}
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
SIGLIP = {"vision_config": hf.SiglipVisionConfig(**VISION)}
OWN = {"scale_factor": 2, "image_token_id": IMAGE, "vision_config": VISION}
INTERN = VISION | {"image_size": [16, 16], "patch_size": [4, 4]}

VISION_FAMILIES = {
    "llava": lambda: hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    ),
    "qwen2_vl": lambda: hf.Qwen2VLConfig(
        vision_config=QWEN | {"embed_dim": 32, "mlp_ratio": 4},
        text_config=TEXT | {"rope_parameters": MROPE},
        **SPANS,
    ),
    "qwen2_5_vl": lambda: hf.Qwen2_5_VLConfig(
        vision_config=QWEN
        | {"out_hidden_size": 32, "intermediate_size": 128, "window_size": 16}
        | {"fullatt_block_indexes": [1]},
        text_config=TEXT | {"rope_parameters": MROPE},
        **SPANS,
    ),
    "gemma3": lambda: hf.Gemma3Config(
        **SIGLIP,
        text_config=hf.Gemma3TextConfig(**HEADED, **MIXED),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=93,
        eoi_token_index=92,
    ),
    "paligemma": lambda: hf.PaliGemmaConfig(
        **SIGLIP,
        text_config=hf.GemmaConfig(**HEADED),
        image_token_index=IMAGE,
        projection_dim=32,
    ),
    "idefics3": lambda: hf.Idefics3Config(**OWN, text_config=hf.LlamaConfig(**TEXT)),
    "smolvlm": lambda: hf.SmolVLMConfig(**OWN, text_config=hf.LlamaConfig(**TEXT)),
    "mistral3": lambda: hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**VISION | {"image_size": 32, "patch_size": 4}),
        text_config=hf.MistralConfig(**HEADED),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    ),
    "internvl": lambda: hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**INTERN),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    ),
    "qwen3_vl": lambda: hf.Qwen3VLConfig(
        vision_config=QWEN
        | {"out_hidden_size": 32, "intermediate_size": 128, "num_position_embeddings": 16}
        | {"deepstack_visual_indexes": [0, 1]},
        text_config=HEADED | {"rope_parameters": MROPE},
        **SPANS,
    ),
    "llava_next": lambda: hf.LlavaNextConfig(
        image_grid_pinpoints=PINPOINTS,
        vision_config=hf.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    ),
    "llava_onevision": lambda: hf.LlavaOnevisionConfig(
        **SIGLIP,
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=94,
    ),
    "aya_vision": lambda: hf.AyaVisionConfig(
        **SIGLIP, text_config=hf.Cohere2Config(**TEXT), image_token_index=IMAGE
    ),
    "lfm2_vl": lambda: hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(
            **{key: value for key, value in VISION.items() if key != "image_size"}, num_patches=16
        ),
        text_config=hf.Lfm2Config(**TEXT, layer_types=["conv", "full_attention"]),
        image_token_id=IMAGE,
    ),
}


def write_vision_model(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a model of a family, its weights large enough to matter, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VISION_FAMILIES[family]()
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def word(number: int) -> str:
    """Return the word of an id."""
    return "".join(chr(ord("a") + digit) for digit in divmod(number, 26))


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of words, with the tokens that stand for images."""
    names = {number: SPECIAL.get(number, word(number)) for number in range(VOCABULARY)}
    words = models.WordLevel({name: number for number, name in names.items()}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "boi_token": "<start>",
            "eoi_token": "<end>",
        },
    ).save_pretrained(folder)


def write_llava_processor(folder: Path) -> None:
    """Write the processor of a LLaVA beside its tokenizer."""
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    hf.LlavaProcessor(
        images,
        hf.AutoTokenizer.from_pretrained(folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)


def write_llava_next_processor(folder: Path) -> None:
    """Write the processor of a LLaVA-NeXT, of which images of other shapes take other tokens."""
    square = {"height": SIDE, "width": SIDE}
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=PINPOINTS
    )
    hf.LlavaNextProcessor(
        images,
        hf.AutoTokenizer.from_pretrained(folder),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Write small images of different sizes as PNG files, and a .jsonl that names them."""
    random = numpy.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        sides = random.integers(20, 40, 2)
        pixels = random.integers(0, 256, (*sides, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        lines.append(
            json.dumps({"image": f"{number:03d}.png", "text": f"{word(10 + number)} ah ai"})
        )
    (folder / "images.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def word_windows(count: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return windows of ordinary words."""
    return torch.randint(4, 90, (count, length), generator=torch.Generator().manual_seed(seed))
