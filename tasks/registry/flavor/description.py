"""What a version says of itself on the pages of MLflow: how people without our code open it.

MLflow shows a line break as one, so that a paragraph is one line.
"""

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
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = mlflow.artifacts.download_artifacts("{uri}") + "/model"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

`MLFLOW_TRACKING_URI` names this registry. Beside `model` lie `requirements.txt`, the packages \
that this takes, and `reports`, what is known of the version.
"""


def describe_version(uri: str, more: str = "") -> str:
    """Return the description of a version, as Markdown."""
    return TEXT.format(uri=uri) + (f"\n{more}" if more else "")
