"""Text generation with a plain Hugging Face folder, behind MLflow's python_function interface.

This file is stored inside each registered model and loaded from there, so it imports nothing but
what requirements.txt beside it names.
"""

from pathlib import Path


class TextGeneration:
    """A causal language model that continues prompts; greedy unless a temperature is given."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False
        ).eval()
        if torch.cuda.is_available():
            self.model = self.model.to("cuda")

    def predict(self, data, params=None):
        """Return the continuation of each prompt, without the prompt.

        Args:
            data: A string, a list of strings, or a DataFrame whose first column holds the prompts.
            params: max_new_tokens; temperature (0: greedy); seed of the sampling.
        """
        params = params or {}
        if isinstance(data, str):
            prompts = [data]
        elif hasattr(data, "iloc"):
            prompts = data.iloc[:, 0].tolist() if data.ndim == 2 else data.tolist()
        else:
            prompts = list(data)
        return [self._continue(str(prompt), params) for prompt in prompts]

    def _continue(self, prompt, params):
        # One prompt at a time: padding would make an answer depend on its neighbours.
        import torch

        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"].to(torch.int64)
        if ids.shape[1] == 0:
            start = self.tokenizer.bos_token_id
            if start is None:
                start = self.tokenizer.eos_token_id
            if start is None:
                raise ValueError("The prompt must hold at least one token, found an empty one.")
            ids = torch.tensor([[start]])
        ids = ids.to(self.model.device)
        temperature = float(params.get("temperature", 0.0))
        how = {"do_sample": False}
        if temperature > 0:
            how = {"do_sample": True, "temperature": temperature}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(int(params.get("seed", 0)))
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=int(params.get("max_new_tokens", 64)),
                pad_token_id=self._pad(),
                **how,
            )[0]
        # Decoded together, because some tokenizers drop the space in front of a first token.
        before = self.tokenizer.decode(ids[0], skip_special_tokens=True)
        return self.tokenizer.decode(output, skip_special_tokens=True)[len(before) :]

    def _pad(self):
        if self.tokenizer.pad_token_id is not None:
            return self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id


def _load_pyfunc(folder):
    return TextGeneration(Path(folder))
