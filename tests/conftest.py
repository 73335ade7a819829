"""For every test: no hub, no network, and the shared data where they are there."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # before anything imports huggingface_hub

import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("amends", deadline=None, max_examples=50)
hypothesis.settings.load_profile("amends")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of public data beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data" / "tofu").is_dir():
        pytest.skip("needs ../shared/data/tofu")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves the machine."""

    def guard(connect: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a Unix socket
            if self.family != socket.AF_UNIX and host not in ("localhost", "::1") and not host.startswith("127."):
                raise OSError(f"a test tried to reach {address}: tests run without network")
            return connect(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Take Ctrl-C as a terminal gives it: a shell starts its background jobs, and so their tests, with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_model(folder: Path, seed: int = 0, context: int = 2048, layers: int = 1) -> Path:
    """A random Llama of some thousand weights with a ChatML tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:2],
    )
    fast.chat_template = CHATML
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=context,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=None,
        pad_token_id=0,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random chat model; not to be changed."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def instead(words: Sequence[object], more: Sequence[object]) -> list[object]:
    """Words of a command, as "--option value" pairs, and `more`: of an option that both give, the value in `more`."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in more for word in pair] + list(more)


@pytest.fixture
def amends(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``amends`` in this process: (exit code, stdout, stderr)."""
    from amends.cli import main

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model like `tiny_model` with other weights; not to be changed."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)
