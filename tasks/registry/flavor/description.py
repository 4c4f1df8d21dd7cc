"""What a version says of itself on the pages of MLflow: how people without our code open it.

MLflow shows a line break as one, so that a paragraph is one line.
"""

from normtweak_core.vision.kinds import IMAGE_TEXT_CLASS, TEXT_CLASS

TEXT = """\
Made and verified by normtweak, of which nothing is needed to open this version:

```python
import mlflow

model = mlflow.pyfunc.load_model("{uri}")
print(model.predict(["Once upon a time"], params={{"max_new_tokens": 40}}))
```

`predict` takes a text, a list of texts, a frame or dict with texts as `prompt`, or the messages \
of a chat where the model has a chat template; all else is refused. Or, as a plain Hugging Face \
folder:

```python
import mlflow
from transformers import {model}, {reader}

folder = mlflow.artifacts.download_artifacts("{uri}") + "/model"
model = {model}.from_pretrained(folder)
{called} = {reader}.from_pretrained(folder)
```
{images}
`MLFLOW_TRACKING_URI` names this registry. Beside `model` lie `requirements.txt`, the packages \
that this takes, and `reports`, what is known of the version.
"""

IMAGES = """
The model reads images as well: `predict` gives it text alone, and the folder gives it both, as \
do the model and the processor of \
`mlflow.transformers.load_model("{uri}", return_type="components")`. Some processors need the \
package torchvision.
"""


def describe_version(uri: str, more: str = "", images: bool = False) -> str:
    """Return the description of a version, as Markdown.

    Args:
        uri: Address of the version.
        more: What else is to be said.
        images: Whether the model reads images.
    """
    text = TEXT.format(
        uri=uri,
        model=IMAGE_TEXT_CLASS if images else TEXT_CLASS,
        reader="AutoProcessor" if images else "AutoTokenizer",
        called="processor" if images else "tokenizer",
        images=IMAGES.format(uri=uri) if images else "",
    )
    return text + (f"\n{more}" if more else "")
