"""A registered model that reads images, opened by a process that cannot import our code."""

import json
from dataclasses import replace

from normtweak_core import quantize
from tests.core.vision_models import (
    word_windows,
    write_images,
    write_llava_processor,
    write_vision_model,
)
from tests.tasks.registry.test_registry_loading import run_without_us

CONSUMER = """
import json, re
import mlflow, torch, transformers
from PIL import Image

uri, image, description = sys.argv[1:]
named = {}
for code in re.findall(r"```python\\n(.+?)```", description, re.DOTALL):
    exec(code, named)  # as its page says
model, processor = named["model"], named["processor"]
said = mlflow.pyfunc.load_model(uri).predict("ba bb", params={"max_new_tokens": 4})
ids = processor.tokenizer("ba bb", return_tensors="pt")["input_ids"]
written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0]
inputs = processor(images=Image.open(image), text="<image> ba bb", return_tensors="pt")
with torch.no_grad():
    seen = model(**inputs).logits
    ids = {"input_ids": inputs["input_ids"]}
    assert not torch.equal(seen, model(**ids).logits)
parts = mlflow.transformers.load_model(uri, return_type="components")
with torch.no_grad():
    assert torch.equal(parts["model"](**parts["processor"](
        images=Image.open(image), text="<image> ba bb", return_tensors="pt")).logits, seen)
piped = transformers.pipeline(
    parts["task"], model=parts["model"], processor=parts["processor"]
)(images=[image], text="<image> ba bb", max_new_tokens=3)
print(json.dumps({
    "class": type(model).__name__,
    "said": "ba bb" + said[0],
    "plain": processor.tokenizer.decode(written, skip_special_tokens=True),
    "task": parts["task"],
    "piped": piped[0]["generated_text"],
}))
"""


def test_a_quantized_llava_is_reopened_by_people_without_our_code(registry, tmp_path):
    source = write_vision_model(tmp_path / "llava", "llava")
    write_llava_processor(source)
    quick = {"bits": 4, "group_size": 32, "effort": "fast", "progress": False}
    folder = quantize(source, calibration=word_windows(8, 24), **quick).save(tmp_path / "export")
    registered = replace(registry, export=folder).register()
    version = registry.client.get_model_version(registered.name, "1")
    images = write_images(tmp_path / "images", 1)
    image = str(images / "000.png")
    told = run_without_us(registry, CONSUMER, "models:/tiny-w4/1", image, version.description)
    found = json.loads(told.strip().splitlines()[-1])
    assert found["class"] == "LlavaForConditionalGeneration"
    assert found["task"] == "image-text-to-text"
    assert found["said"] == found["plain"]
    assert found["piped"].startswith("<image>")
