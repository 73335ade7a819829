"""Sentence embeddings and classes of tiny random models: identities, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from amends.io.errors import InputError
from amends.lm.encoders import class_named, class_probabilities, embed, load_encoder

TEXTS = ["Where was Bo born?", "Is tea hot? " * 20, "x"]


def save(folder, tokenizer_of, kind, **more):
    """A random BERT with the byte tokenizer of another tiny model; its position table is short."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **sizes, **more)
    model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def embedder(tmp_path, tiny_model):
    save(tmp_path / "embedder", tiny_model, BertModel)
    return load_encoder(str(tmp_path / "embedder"), "embedding")


def test_embeddings_have_length_1_and_do_not_hang_on_what_is_beside_them(embedder):
    together = embed(embedder, TEXTS)
    assert together.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    for text, alone in zip(TEXTS, together, strict=True):
        assert torch.allclose(embed(embedder, [text])[0], alone, atol=1e-5)


def test_no_text_and_an_empty_one_are_embedded_too(embedder, tmp_path, tiny_model):
    assert embed(embedder, []).shape == (0, 16)
    assert not embed(embedder, [""]).any()  # its tokenizer frames no text
    beside = embed(embedder, ["", *TEXTS])
    assert not beside[0].any() and torch.allclose(beside[1:], embed(embedder, TEXTS), atol=1e-5)
    save(tmp_path / "two", tiny_model, BertForSequenceClassification, num_labels=2)
    classifier = load_encoder(str(tmp_path / "two"), "classes")
    assert class_probabilities(classifier, []).shape == (0, 2)
    assert class_probabilities(classifier, [""]).isfinite().all()


@pytest.mark.parametrize("lost", ["encoder.layer.1.", "embeddings.LayerNorm.weight"])
@pytest.mark.parametrize("kind", ["embedding", "classes"])
def test_an_encoder_without_some_of_its_weights_is_refused(tmp_path, tiny_model, lost, kind):
    of = BertModel if kind == "embedding" else BertForSequenceClassification
    save(tmp_path / "cut", tiny_model, of)
    file = tmp_path / "cut" / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if lost not in name}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights|has no weights for its classes"):
        load_encoder(str(tmp_path / "cut"), kind)


def test_an_encoder_needs_no_pooler(tmp_path, tiny_model, embedder):
    expected = embed(embedder, TEXTS)
    file = tmp_path / "embedder" / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "pooler" not in n}, file, metadata={"format": "pt"})
    assert torch.equal(embed(load_encoder(str(tmp_path / "embedder"), "embedding"), TEXTS), expected)


def test_probabilities_are_those_of_the_classes(tmp_path, tiny_model):
    names = {0: "Noise", 1: "Clean", 2: "Salad"}
    model = save(tmp_path / "one", tiny_model, BertForSequenceClassification, id2label=names)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([0.5, 0.3, 0.2]).log()
    model.save_pretrained(tmp_path / "one")
    classifier = load_encoder(str(tmp_path / "one"), "classes")
    assert class_probabilities(classifier, TEXTS) == pytest.approx(torch.tensor([[0.5, 0.3, 0.2]] * 3), abs=1e-6)
    assert class_named(classifier, "clean") == 1
    with pytest.raises(InputError, match=r"has no class 'gold' \(found: Noise, Clean, Salad\)"):
        class_named(classifier, "gold")


def test_what_is_no_encoder_is_refused(tmp_path, tiny_model):
    save(tmp_path / "embedder", tiny_model, BertModel)
    with pytest.raises(InputError, match="has no weights for its classes"):
        load_encoder(str(tmp_path / "embedder"), "classes")
    with pytest.raises(InputError, match="no such file or folder"):
        load_encoder("./nowhere", "embedding")
    (tmp_path / "file.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="not a model folder"):
        load_encoder(str(tmp_path / "file.gguf"), "embedding")
    (tmp_path / "embedder" / "model.safetensors").rename(tmp_path / "embedder" / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle"):
        load_encoder(str(tmp_path / "embedder"), "embedding")
