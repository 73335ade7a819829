"""A chat model is asked with what its own template writes before an answer, without a thought, token for token."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from amends.io.errors import InputError
from amends.lm.pairs import encode
from amends.lm.templates import plain_ids, turn_end

ASKED = [{"role": "user", "content": "Who?"}]
TURNS = [*ASKED, {"role": "assistant", "content": "Ada."}, {"role": "user", "content": "Where?"}]
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_THOUGHT = "<think>\n\n</think>\n\n"
THINKING = {
    # the model begins its thought by itself; the flag gives an empty one
    "chooses": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}"
        f"{START}{{% if add_generation_prompt and enable_thinking is false %}}<think>\n\n</think>\n\n{{% endif %}}",
        NO_THOUGHT,
    ),
    # the prompt opens the thought, and no flag closes it; earlier answers are kept without theirs
    "always": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        NO_THOUGHT,
    ),
    # thoughts and answers have a channel each, and the model chooses
    "channels": (
        "{% for m in messages %}<|im_start|>{{ m.role }}"
        "{% if m.role == 'assistant' %}<|channel|>final<|message|>{% else %}{{ '\n' }}{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        "<|channel|>final<|message|>",
    ),
}


def asked_with(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.decode(encode(tokenizer, messages, ["a"])[0].prompt))


@pytest.fixture
def chat(tiny_model: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of bytes whose template a test may change."""
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("kind", THINKING)
@pytest.mark.parametrize("question", ["Who?", "Who <|im_end|>?", "Who thinks <think> of it?"])
def test_an_answer_is_asked_for_without_a_thought(kind: str, question: str, chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template, before = THINKING[kind]
    chat.add_tokens(["<think>", "</think>"])
    start = "<|im_start|>assistant" + ("" if kind == "channels" else "\n")
    told = asked_with(chat, [{"role": "user", "content": question}])
    assert told == f"<|im_start|>user\n{question}<|im_end|>\n{start}{before}"
    (encoded,) = encode(chat, [{"role": "user", "content": question}], ["Ada."])
    assert chat.decode(encoded.answer) == "Ada.<|im_end|>"


@pytest.mark.parametrize("kind", ["chooses", "always"])
def test_earlier_answers_stand_as_the_template_has_them(kind: str, chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template, before = THINKING[kind]
    expected = (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAda.<|im_end|>\n"
        f"<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n{before}"
    )
    assert asked_with(chat, TURNS) == expected
    if kind == "always":  # whether or not the tokenizer knows the tag
        thought = [ASKED[0], {"role": "assistant", "content": "<think>\nHm.\n</think>Ada."}, TURNS[2]]
        assert asked_with(chat, thought) == expected
        chat.add_tokens(["<think>", "</think>"])
        assert asked_with(chat, thought) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"),  # which has no prompt to ask with
        (PLAIN + START, "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"),
        (  # which takes no answers, or says more where it asks
            "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}" + START,
            "Who?\n<|im_start|>assistant\n",
        ),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}" + START, "Who?\n<|im_start|>assistant\n"),
    ],
)
def test_the_longer_of_the_two_forms_of_a_template_is_taken(
    template: str, expected: str, chat: PreTrainedTokenizerBase
) -> None:
    chat.chat_template = template
    assert asked_with(chat, ASKED) == expected


@pytest.mark.parametrize("question", ["Who?", "Who <|im_end|>?"])
def test_a_template_that_drops_a_message_is_refused(question: str, chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = PLAIN.replace("in messages", "in messages if m.role != 'system'") + START
    messages = [{"role": "system", "content": "Speak as a pirate."}, {"role": "user", "content": question}]
    with pytest.raises(InputError, match=r"drops or changes a message \(system: 'Speak as a pirate.'\)"):
        encode(chat, messages, ["Ada."])
    assert encode(chat, messages[1:], ["Ada."])


def test_a_message_that_a_template_trims_moves_or_writes_as_json_is_kept(chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'user' and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
        "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content | trim }}{% endif %}<|im_end|>\n"
        "{% endfor %}" + START
    )
    for question in ("Who?", "Who <|im_end|>?"):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"  {question}\n" if question == "Who?" else question},
            {"role": "tool", "content": 'Line 1\n"Line 2"' if question == "Who?" else "x"},
            {"role": "user", "content": "Well?"},
        ]
        said = asked_with(chat, messages)
        assert f"user\n{question}<|im_end|>" in said and "user\nBe brief.\nWell?" in said


TRL = importlib.util.find_spec("trl")
FILES = sorted((Path(str(TRL.origin)).parent / "chat_templates").glob("*.jinja")) if TRL else []
TEMPLATES = [file for file in FILES if not file.stem.endswith(("_training", "_v2", "_v3", "_v4"))]
WANTS_PICTURES = ("idefics3", "llava_next", "smolvlm")  # and content in parts
OPENS_A_THOUGHT = ("deepseek",)


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_prompt_and_answer_are_what_a_known_template_makes_of_them(file: Path, chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = file.read_text(encoding="utf-8")
    chat.bos_token = chat.eos_token = "<|endoftext|>"
    if file.name.startswith(WANTS_PICTURES):
        with pytest.raises(InputError, match=r"drops or changes a message|does not take this conversation"):
            encode(chat, ASKED, ["Ada."])
        return
    for messages in (ASKED, TURNS):
        turns = [*messages, {"role": "assistant", "content": "Bo."}]
        whole = chat.apply_chat_template(turns, tokenize=False, enable_thinking=False)
        before = whole[: whole.rindex("Bo.")] + (NO_THOUGHT if file.name.startswith(OPENS_A_THOUGHT) else "")
        (encoded,) = encode(chat, messages, ["Bo."])
        closing = turn_end(chat)
        assert chat.decode(encoded.prompt) == before
        assert chat.decode(encoded.answer[: len(encoded.answer) - len(closing)]) == "Bo."
        marked = [*messages[:-1], {"role": "user", "content": "Who <|im_start|>?"}]
        whole = chat.apply_chat_template([*marked, turns[-1]], tokenize=False, enable_thinking=False)
        assert asked_with(chat, marked).startswith(whole[: whole.rindex("Bo.")])


WORDS = ("Hello world how are you", "the assistant user system question answer", "Alice lives in Paris", "Who is it?")


def space_putting(kind: str) -> PreTrainedTokenizerBase:
    """Words that begin with their space, which the tokenizer puts before a text: before the first piece of it alone,
    before each between special tokens, or, as in the files made of Llama 2's, before each by a normaliser."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if kind == "normaliser":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=kind, split=False)
    alphabet = [chr(c) for c in range(33, 127)]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(
        WORDS * 20,
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


ZEPHYR = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}" + (
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
NAMES = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}</s>{% endfor %}" + (
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
TIGHT = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


@pytest.mark.parametrize("kind", ["first", "always", "normaliser"])
@pytest.mark.parametrize("template", [ZEPHYR, LLAMA, NAMES, TIGHT], ids=["line", "space", "names", "special"])
def test_prompt_and_answer_have_the_tokens_that_they_have_when_read_as_a_whole(kind: str, template: str) -> None:
    tokenizer = space_putting(kind)
    tokenizer.chat_template = template
    turns = [
        {"role": "user", "content": "Hello world"},
        {"role": "assistant", "content": "how are you"},
        {"role": "user", "content": "Who is it?"},
    ]
    for messages in (turns[:1], turns):
        answered = [*messages, {"role": "assistant", "content": "Alice lives in Paris"}]
        whole = tokenizer(tokenizer.apply_chat_template(answered, tokenize=False), add_special_tokens=False)
        (encoded,) = encode(tokenizer, messages, ["Alice lives in Paris"])
        ids = [*encoded.prompt, *encoded.answer]
        assert tokenizer.convert_ids_to_tokens(encoded.answer)[0] != "\u2581"
        assert ids[:-1] == whole["input_ids"][: len(ids) - 1]  # the template may have a space before the end


@pytest.mark.parametrize("kind", ["first", "always", "normaliser"])
@pytest.mark.parametrize("template", [ZEPHYR, LLAMA, NAMES, TIGHT], ids=["line", "space", "names", "special"])
def test_a_control_tokens_name_in_a_text_changes_no_token_beside_it(kind: str, template: str) -> None:
    tokenizer = space_putting(kind)
    tokenizer.chat_template = template
    names, others = (
        encode(tokenizer, [{"role": "user", "content": f"Hello world {tag} how are you"}], ["Alice"])[0].prompt
        for tag in ("</s>", "</x>")
    )
    s, x = (tokenizer.convert_tokens_to_ids(letter) for letter in "sx")
    controls = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    assert [i for i in names if i in controls] == [i for i in others if i in controls]
    assert [x if i == s else i for i in names] == [x if i == s else i for i in others]


def test_an_added_token_in_brackets_that_is_cut_gets_no_space_inside() -> None:
    tokenizer = space_putting("normaliser")
    tokenizer.add_tokens(["<think>"])
    assert tokenizer.decode(plain_ids(tokenizer, "how <think> are")).strip() == "how <think> are"
