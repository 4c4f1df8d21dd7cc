"""Tiny random models on disk, shared by the tests of the core."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

SHARED = {"vocab_size": 96, "hidden_size": 32, "max_position_embeddings": 64}


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from a second thread and lose much when cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of a Llama-shaped and a Pythia-shaped model with weights large enough to matter."""
    configs = {
        "llama": LlamaConfig(
            **SHARED,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        "neox": GPTNeoXConfig(
            **SHARED, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
        ),
    }
    folders = {}
    for name, config in configs.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(6)
        folders[name] = tmp_path_factory.mktemp("tiny") / name
        model.save_pretrained(folders[name])
    return folders
