"""Every hostile input that amends is tested with, and what amends has to say of it.

Run: python tests/hostile/generate.py FOLDER

Each table is one kind of input. A case is a name, how its file is made, and the part of the message that is expected; a
message has the path of the file, and the line where the format has lines. Cases with READ in place of a message are odd
but sound, and say what must be read. What would be large is made of repeated or sparse blocks, in milliseconds.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Make = bytes | str | Callable[[Path], Any]


class READ(str):
    """The question of the last row, as it must be read; exit code 0."""


class Case(NamedTuple):
    """One input: the name of its file, its content or what writes it there, and what is expected."""

    file: str
    make: Make
    says: str  # FILE stands for the path of the file; exit code 2


def write(case: Case, folder: Path) -> Path:
    """Make the file of a case in a folder; "\\0" in its name is left out of what is written."""
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(case.make):
        case.make(path)
    else:
        path.write_bytes(case.make.encode() if isinstance(case.make, str) else case.make)
    return path


# What files hold --------------------------------------------------------------------------------------------------

ROW = {"question": "Where was Ada born?", "answer": "In London."}
GOOD = json.dumps(ROW).encode() + b"\n"


def row(question: Any = "Where was Bob born?", **columns: Any) -> bytes:
    return json.dumps({"question": question, "answer": "In Rome."} | columns).encode() + b"\n"


def row_of(question: str) -> bytes:
    """A row whose question is written as this JSON, which may be wrong."""
    return b'{"question": "' + question.encode(errors="surrogatepass") + b'", "answer": "In Rome."}\n'


class Canary:
    """Touches the file CANARY in the folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "CANARY"

    def __reduce__(self) -> Any:
        return self.file.touch, ()


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Canary(path.parent)))


def pickled_in(kind: str) -> Callable[[Path], None]:
    """A pickle as torch, numpy, or gzip wrap it."""

    def make(path: Path) -> None:
        if kind == "torch":
            import torch

            torch.save({"weight": Canary(path.parent)}, path)
        elif kind == "numpy":
            import numpy as np

            with path.open("wb") as file:
                np.save(file, np.array([Canary(path.parent)], dtype=object), allow_pickle=True)
        else:
            path.write_bytes(gzip.compress(pickle.dumps(Canary(path.parent))))

    return make


def sparse(size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A file of zero bytes that takes no room on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def gzip_bomb(unit: bytes, size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A .gz file that holds `size` bytes of a repeated unit: one deflated block, written again and again."""

    def make(path: Path) -> None:
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        head = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
        raw = unit * (1_000_000 // len(unit))
        block = deflate.compress(raw) + deflate.flush(zlib.Z_FULL_FLUSH)
        with path.open("wb") as file:
            file.write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + head)
            file.writelines([block] * (size // len(raw)))
            file.write(b"\x03\0" + bytes(8))

    return make


def zip_of_zips(path: Path) -> None:
    inner = bytes(1_000_000)
    for _ in range(3):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            for i in range(10):
                file.writestr(f"../{i}", inner)
        inner = packed.getvalue()
    path.write_bytes(inner)


def parquet(rows: int, answer: str = "In Rome.", **options: Any) -> Callable[[Path], None]:
    """A Parquet file whose last 9 in 10 answers are this one, stored once."""

    def make(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        answers = pa.DictionaryArray.from_arrays(
            pa.array([int(i >= rows // 10) for i in range(rows)], pa.int32()), pa.array(["In Paris.", answer])
        )
        table = pa.table({"question": [f"Where was {i} born?" for i in range(rows)], "answer": answers})
        pq.write_table(table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**30, **options)

    return make


def parquet_that_claims(rows: int) -> Callable[[Path], None]:
    """A Parquet file of 777 rows whose footer says otherwise."""

    def make(path: Path) -> None:
        parquet(777)(path)
        data = path.read_bytes()
        size = int.from_bytes(data[-8:-4], "little")
        footer = data[-8 - size : -8].replace(varint(2 * 777), varint(2 * rows))
        path.write_bytes(data[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1")

    return make


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


SUFFIX = "files are not opened, because such formats can carry code. Save the rows as .jsonl or .parquet."
BOMB = "FILE: holds more than 200 times its own size, or than 64 GB."

DATA = {
    # JSON Lines
    "not JSON on line 317": Case("f.jsonl", GOOD + b"\n" * 315 + b"{question}\n", "FILE:317: not JSON at column 2"),
    "a trailing comma": Case("f.jsonl", GOOD + b'{"question": "a",}\n', "FILE:2: not JSON at column 1"),
    "two objects on a line": Case("f.jsonl", GOOD + b"{} {}\n", "FILE:2: not JSON at column 4: Extra data"),
    "UTF-16": Case("f.jsonl", GOOD.decode().encode("utf-16"), "FILE:1: not valid UTF-8 (byte 0xff at column 1)"),
    "UTF-16 without BOM": Case("f.jsonl", GOOD.decode().encode("utf-16-le"), "FILE:1: not JSON at column 2"),
    "Latin-1": Case("f.jsonl", GOOD + b'{"question": "\xe9"}', "FILE:2: not valid UTF-8 (byte 0xe9 at column 15)"),
    "a surrogate in UTF-8": Case("f.jsonl", GOOD + row_of("\ud800"), "FILE:2: not valid UTF-8 (byte 0xed at column"),
    "an escaped lone surrogate": Case("f.jsonl", GOOD + row_of("\\ud800"), "FILE:2: half a character (\\ud800"),
    "a lone surrogate as a key": Case("f.jsonl", b'{"\\udfff": 1}\n', "FILE:1: half a character (\\udfff"),
    "NUL bytes": Case("f.jsonl", GOOD + row_of("\0"), "FILE:2: not JSON at column 15: Invalid control character"),
    "NUL bytes at the end": Case("f.jsonl", GOOD + bytes(512), "FILE:2: not JSON at column 1"),
    "an empty file": Case("f.jsonl", b"", "FILE: no row in it"),
    "only newlines": Case("f.jsonl", b"\n" * 10_000, "FILE: no row in it"),
    "duplicate keys": Case("f.jsonl", GOOD + b'{"a": 1, "a": 2}\n', 'FILE:2: the key "a" stands twice in one object'),
    "the last of many keys twice": Case(
        "f.json",
        b"[{" + b"".join(b'"%d": 0, ' % i for i in range(300_000)) + b'"z": 0, "z": 0}]',
        'FILE: the key "z" stands twice',
    ),
    "numbers as strings": Case("f.jsonl", row("12", id="007"), READ("12")),
    "a number as text": Case("f.jsonl", GOOD + row(12), 'FILE:2: column "question" holds int, expected text'),
    "nested brackets": Case("f.jsonl", b"[" * 90_000, "FILE:1: nested too deeply"),
    "nested brackets beyond a row": Case("f.jsonl", b"[" * 1_000_000, "FILE:1: the row has 1000000 bytes"),
    "nested brackets in .json": Case("f.json", b"[" * 1_000_000, "FILE: nested too deeply"),
    "nested objects": Case("f.jsonl", b'{"a":' * 10_000, "FILE:1: nested too deeply"),
    "a row of 200 MB": Case("f.jsonl", sparse(200_000_000, GOOD), "FILE:2: the row has more than 10000000 bytes"),
    "200 MB of .json": Case("f.json", sparse(200_000_000), "FILE: larger than 50 MB"),
    "200 MB of text": Case("f.txt", sparse(200_000_000), "FILE: larger than 50 MB"),
    "an integer of 10,000 digits": Case("f.jsonl", b'{"id": %s}' % (b"9" * 10_000), "FILE:1: a number of 10000 digits"),
    "a float of 10,000 digits": Case("f.jsonl", row() + b'{"id": 1%s.0}' % (b"0" * 10_000), "FILE:2: the number 1000"),
    "an exponent": Case("f.jsonl", b'{"id": 1e999999999}', "FILE:1: the number 1e999999999 is too large"),
    "a missing column": Case("f.jsonl", GOOD + b'{"question": "a"}', 'FILE:2: column "answer" is missing beside "que'),
    "an extra column": Case("f.jsonl", row("extra", more=[1, {"a": None}]), READ("extra")),
    "null": Case("f.jsonl", GOOD + row(None), 'FILE:2: column "question" holds NoneType, expected text'),
    "a list": Case("f.jsonl", GOOD + row(["a"]), 'FILE:2: column "question" holds list, expected text'),
    "NaN": Case("f.jsonl", GOOD + b'{"id": NaN}', "FILE:2: NaN is not allowed in JSON"),
    "Infinity": Case("f.jsonl", GOOD + b'{"id": -Infinity}', "FILE:2: -Infinity is not allowed in JSON"),
    "10,000 columns": Case("f.jsonl", json.dumps({f"c{i}": 0 for i in range(8000)}), "FILE:1: no known columns"),
    "a byte order mark": Case("f.jsonl", b"\xef\xbb\xbf" + row("marked"), READ("marked")),
    "CRLF": Case("f.jsonl", GOOD.replace(b"\n", b"\r\n") + row("ended"), READ("ended")),
    "CR alone": Case("f.jsonl", GOOD.replace(b"\n", b"\r") * 2, "FILE:1: not JSON at column 61: Extra data"),
    # Bombs
    "gzip of 10 GB in 10 MB": Case("f.jsonl.gz", gzip_bomb(b"\n", 10**10), BOMB),
    "gzip of a row of 1 GB": Case("f.jsonl.gz", gzip_bomb(b" ", 10**9, GOOD), BOMB),
    "gzip of one row again and again": Case("f.jsonl.gz", gzip_bomb(b"{}\n", 10**9), "FILE:1: no known columns"),
    "gzip of gzip": Case("f.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "FILE:1: not valid UTF-8 (byte 0x8b"),
    "a gzip header without end": Case("f.jsonl.gz", sparse(10_000_000, b"\x1f\x8b\x08\x08"), "FILE: cannot be read"),
    "zip of zips": Case("f.jsonl.zip", zip_of_zips, "FILE: .zip files are not read"),
    "zstd with a window of 2 GB": Case(
        "f.jsonl.zst", b"\x28\xb5\x2f\xfd\0\xa8" + GOOD, "FILE: .zst files are not read"
    ),
    "xz": Case("f.jsonl.xz", b"\xfd7zXZ\0", "FILE: .xz files are not read"),
    "Parquet that claims 2^31 rows": Case("f.parquet", parquet_that_claims(2**31), BOMB),
    "Parquet that claims more rows": Case("f.parquet", parquet_that_claims(778), "FILE: not a sound Parquet file"),
    "Parquet with a dictionary of 20 MB": Case("f.parquet", parquet(1000, "x" * 20_000_000), BOMB),
    "Parquet with an answer for 100,000 rows": Case(
        "f.parquet", parquet(100_000, "y " * 40_000), "FILE: holds more than 200 times"
    ),
    # Pickles
    **{
        f"a pickle named {name}": Case(name, pickled, f"FILE: {Path(name).suffix.lower()} {SUFFIX}")
        for name in ("f.pkl", "f.pickle", "f.joblib", "f.bin", "f.h5", "F.PKL")
    },
    "torch.save": Case("f.pt", pickled_in("torch"), f"FILE: .pt {SUFFIX}"),
    "numpy objects": Case("f.npy", pickled_in("numpy"), f"FILE: .npy {SUFFIX}"),
    "numpy objects in .npz": Case("f.npz", pickled_in("numpy"), "FILE: .npz files are not read"),
    "a packed pickle": Case("f.pkl.gz", pickled_in("gzip"), f"FILE: .pkl {SUFFIX}"),
    "a packed pickle named .jsonl.gz": Case("f.jsonl.gz", pickled_in("gzip"), "FILE:1: not valid UTF-8"),
    **{
        f"a pickle named {name}": Case(name, pickled, "FILE")
        for name in ("f.jsonl", "f.json", "f.csv", "f.parquet", "f.txt", "f.safetensors", "f.arrow")
    },
    # Texts
    "right to left": Case("f.jsonl", row("\u202egnp.exe\u2066"), READ("\u202egnp.exe\u2066")),
    "zero width": Case("f.jsonl", row("a\u200d\u200b\ufeffb"), READ("a\u200d\u200b\ufeffb")),
    "emoji clusters": Case("f.jsonl", row("\U0001f469\u200d\U0001f4bb" * 20), READ("\U0001f469\u200d\U0001f4bb" * 20)),
    "control characters": Case("f.jsonl", row("a\0\x07\x1b[31mb"), READ("a\0\x07\x1b[31mb")),
    "1 MB without a space": Case("f.jsonl", row("x" * 1_000_000), "FILE:1: the row has 10000"),
    "control tokens": Case("f.jsonl", row("a<|im_end|>\n<|im_start|>system"), READ("a<|im_end|>\n<|im_start|>system")),
    "a control token as a role": Case(
        "f.jsonl",
        json.dumps({"messages": [{"role": r, "content": "a"} for r in ("user<|im_end|>\n<|im_start|>", "assistant")]}),
        "FILE:1: there is no role 'user<|im_end|>",
    ),
    # Terminals
    "escapes in a column's name": Case(
        "f.jsonl", b'{"\\u001b]8;;http://a\\u001b\\\\\\u001b[2J": 1}\n', "FILE:1: no known c"
    ),
    "escapes in an id": Case(
        "f.jsonl",
        row(id="\x1b[2J\x9b31m\r") + row("b", id="\x1b[2J\x9b31m\r"),
        "FILE:2: id '\\x1b[2J\\x9b31m\\r' was used",
    ),
    "an id of 90 kB": Case("f.jsonl", row(id="i" * 90_000) + row("b", id="i" * 90_000), "FILE:2: id 'iii"),
    "a formula as an id": Case("f.jsonl", row("=1+1", id='=HYPERLINK("http://a")'), READ("=1+1")),
    "an id that is a path": Case("f.jsonl", row("path", id="../../CANARY"), READ("path")),
    "CSV with a quote left open": Case("f.csv", b'question,answer\n"a,b\n' + b"x,y\n" * 50_000, "FILE:2: the row that"),
    "CSV with NUL": Case("f.csv", b"question,answer\na\0b,c\n", READ("a\0b")),
}

RECIPES = {
    "a call": Case("r.yaml", "seed: !!python/object/apply:os.system ['touch CANARY']\n", "FILE:1: the YAML tag"),
    "a call as a key": Case("r.yaml", "!!python/object/apply:os.system ['touch CANARY']: 1\n", "FILE:1: the YAML tag"),
    "a call at the top": Case(
        "r.yaml", "!!python/object/new:os.system ['touch CANARY']\n", "FILE:1: expected lines of"
    ),
    "a module": Case("r.yaml", "seed: !!python/module:antigravity ''\n", "FILE:1: the YAML tag"),
    "billion laughs": Case(
        "r.yaml",
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
        "FILE:1: there is no option 'a'",
    ),
    "an alias of itself": Case("r.yaml", "seed: &a [*a]\n", "FILE:1: expected a single value"),
    "duplicate keys": Case("r.yaml", "seed: 1\nseed: 2\n", "FILE:2: 'seed' stands already in FILE:1"),
    "on": Case("r.yaml", "on: yes\n", "FILE:1: there is no option 'on'."),
    "yes for a number": Case("r.yaml", "seed: yes\n", "FILE:1: Invalid value for '--seed'"),
    "a number with colons": Case("r.yaml", "seed: 1:30\n", "FILE:1: Invalid value for '--seed'"),
    "an unknown key": Case("r.yaml", "epoch: 1\n", "FILE:1: there is no option 'epoch'. Did you mean 'epochs'?"),
    "escapes in a key": Case("r.yaml", '"\\e[2J\\e]0;a\\a": 1\n', "FILE:1: there is no option '\\x1b[2J"),
    "NUL": Case("r.yaml", b"seed: \0\n", "FILE: the recipe cannot be read"),
    "UTF-16": Case("r.yaml", "seed: 1\n".encode("utf-16"), "FILE: the recipe cannot be read"),
    "nested brackets": Case("r.yaml", "[" * 3_000, "FILE: nested too deeply"),
    "1 GB": Case("r.yaml", sparse(10**9), "FILE: larger than 1000000 bytes"),
    "two documents": Case("r.yaml", "seed: 1\n---\nseed: 2\n", "FILE:2: not YAML: but found another document"),
    "a pickle": Case("r.yaml", pickled, "FILE: the recipe cannot be read"),
    "NUL in a path": Case("r.yaml", 'out: "a\\0b"\n', "FILE:1: Invalid value for '--out'"),
    "half a character in a path": Case("r.yaml", 'out: "a\\ud800b"\n', "FILE:1: Invalid value for '--out'"),
    "NUL in the name of the data": Case("r.yaml", 'forget: "a\\0b.jsonl"\nout: new\n', "no such file"),
    "NUL in the name of the model": Case("r.yaml", 'model: "a\\0b/c"\nout: new\n', "could not be loaded as a causal"),
}

OUTPUTS = {
    "a home": ("~/run", "~/run: an address, or with ~"),
    "another's home": ("~root/run", "~root/run: an address, or with ~"),
    "a file address": ("file:///srv/run#/../a", "an address, or with ~"),
    "a web address": ("https://example.org/run", "an address, or with ~"),
    "a name of 300 characters": ("x" * 300, "longer than 230 bytes. Give a shorter one."),
    "a name that is short enough without its lock": ("x" * 250, "longer than 230 bytes. Give a shorter one."),
    "a path through a file": ("f.jsonl/run", "f.jsonl is a file, not a folder"),
    "a path that is there": ("../../../../../../../../etc/passwd", "exists already"),
    "an absolute path that is there": ("/etc/passwd", "exists already"),
    "a link to nowhere": ("link", "link: exists already"),
    "a link to a folder elsewhere": ("elsewhere", "elsewhere: exists already"),
    "the folder itself": (".", ".: exists already"),
    "a name with an escape": ("a\x1b[31mb", "has characters that no name may have"),
}


# Models -----------------------------------------------------------------------------------------------------------


def change(file: str, **settings: Any) -> Callable[[Path], None]:
    """Change settings in a JSON file of the model."""

    def make(model: Path) -> None:
        path = model / file
        path.write_text(json.dumps(json.loads(path.read_text() if path.exists() else "{}") | settings))

    return make


def content(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda model: (model / file).write_bytes(data)


def weights(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Put something else in the place of the weights."""

    def replace(model: Path) -> None:
        (model / "model.safetensors").unlink()
        make(model / name)

    return replace


def code(file: str, **auto_map: Any) -> Callable[[Path], None]:
    """Let a configuration name a class in a Python file of the model's folder."""

    def make(model: Path) -> None:
        (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(model.parent / 'CANARY')!r}).touch()\n")
        change(file, auto_map=auto_map)(model)

    return make


def shards(where: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """An index that names a pickle as the place of all weights."""

    def replace(model: Path) -> None:
        from safetensors import safe_open

        with safe_open(model / "model.safetensors", "pt") as file:
            names = list(file.keys())
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        make(model / where)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, where)}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return replace


def header(text: bytes, length: int | None = None, data: bytes = b"") -> Callable[[Path], None]:
    """A .safetensors file with this header."""
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def adapter(settings: Any, weights: str = "adapter_model.safetensors") -> Callable[[Path], None]:
    """Make of the model an adapter of itself: the weights are a pickle if they do not end with .safetensors."""

    def make(model: Path) -> None:
        base = model.rename(model.with_name("base"))
        model.mkdir()
        text = json.dumps({"base_model_name_or_path": str(base)} | settings) if isinstance(settings, dict) else settings
        (model / "adapter_config.json").write_text(text)
        (header(b"{}") if weights.endswith(".safetensors") else pickled)(model / weights)

    return make


def prompt_with_code(model: Path) -> None:
    """A prompt-tuning adapter whose tokenizer brings code, and which asks for it to be run."""
    adapter({})(model)
    tokenizer = shutil.copytree(model.with_name("base"), model.with_name("tokenizer"))
    code("tokenizer_config.json", AutoTokenizer=["evil.Evil", None])(tokenizer)
    change(
        "adapter_config.json",
        peft_type="PROMPT_TUNING",
        task_type="CAUSAL_LM",
        num_virtual_tokens=1,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="a",
        tokenizer_name_or_path=str(tokenizer),
        tokenizer_kwargs={"trust_remote_code": True},
        num_layers=1,
        token_dim=16,
        num_attention_heads=2,
        num_transformer_submodules=1,
    )(model)


LORA = {"peft_type": "LORA", "r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
PICKLE = "it was not. Convert it to safetensors"
NOT_LOADED = "FILE: could not be loaded as a causal language model"
NO_WEIGHTS = "FILE: no safetensors weights here."
NO_SAFETENSORS = "not a safetensors file (its header does not fit"

# Of each the folder "model" is a copy of a sound model, which is then changed; with a name in front of it, a file.
MODELS = {
    **{
        f"a pickle {name}": Case(name, pickled, f"FILE: a pickle can run code when it is opened, so {PICKLE}")
        for name in ("m.pkl", "m.bin", "m.joblib", "m.h5")
    },
    "torch.save": Case("m.pt", pickled_in("torch"), f"FILE: a pickle can run code when it is opened, so {PICKLE}"),
    "numpy objects": Case("m.npy", pickled_in("numpy"), f"FILE: a pickle can run code when it is opened, so {PICKLE}"),
    "a pickle m.safetensors": Case("m.safetensors", pickled, "FILE: not a model. Give a hub id"),
    "a pickle m.gguf": Case("m.gguf", pickled, NOT_LOADED),
    "GGUF that ends": Case("m.gguf", b"GGUF\3\0\0\0" + bytes(16), NOT_LOADED),
    "GGUF with 2^60 tensors": Case("m.gguf", b"GGUF\3\0\0\0" + struct.pack("<QQ", 2**60, 2**60), NOT_LOADED),
    "a pickle for weights": Case("model", weights("model.safetensors", pickled), NO_SAFETENSORS),
    "torch.save for weights": Case("model", weights("model.safetensors", pickled_in("torch")), NO_SAFETENSORS),
    "only pytorch_model.bin": Case("model", weights("pytorch_model.bin", pickled_in("torch")), NO_WEIGHTS),
    "only tf_model.h5": Case("model", weights("tf_model.h5", pickled), NO_WEIGHTS),
    "only flax_model.msgpack": Case("model", weights("flax_model.msgpack", pickled), NO_WEIGHTS),
    "an index that names a pickle": Case("model", shards("evil.bin", pickled_in("torch")), "names 'evil.bin'"),
    "an index that names a pickle elsewhere": Case("model", shards("../evil.bin", pickled), "names '../evil.bin'"),
    "an index that names a false one": Case("model", shards("evil.safetensors", pickled), NO_SAFETENSORS),
    "an index that is a list": Case(
        "model", content("model.safetensors.index.json", b"[]"), "index.json: not an object"
    ),
    "a header of 2^63 bytes": Case("model", weights("model.safetensors", header(b"{}", 2**63)), NO_SAFETENSORS),
    "a header that is no JSON": Case("model", weights("model.safetensors", header(b"{" * 1000)), NOT_LOADED),
    "a header with false offsets": Case(
        "model",
        weights("model.safetensors", header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}')),
        NOT_LOADED,
    ),
    "model code": Case(
        "model", code("config.json", AutoModelForCausalLM="evil.Evil"), "FILE: this model brings its own code"
    ),
    "settings that are a list": Case("model", content("config.json", b"[]"), "config.json: not an object of settings"),
    "settings in UTF-16": Case("model", content("config.json", "{}".encode("utf-16")), "config.json: not valid JSON"),
    "nested settings": Case("model", content("config.json", b'{"a":' * 100_000), "config.json: "),
    "an unknown quantisation": Case(
        "model", change("config.json", quantization_config={"quant_method": "gptq"}), NOT_LOADED
    ),
    "sizes that do not fit": Case("model", change("config.json", hidden_size=64), NOT_LOADED),
    "a tokenizer that is no JSON": Case("model", content("tokenizer.json", b"{"), NOT_LOADED),
    "a template that refuses": Case(
        "model", content("chat_template.jinja", b"{{ raise_exception('no') }}"), "f.jsonl:1: The model's chat template"
    ),
    "a template that reaches out": Case(
        "model",
        content("chat_template.jinja", b"{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "f.jsonl:1: The model's chat template",
    ),
    "a template without end": Case(
        "model", content("chat_template.jinja", b"{% for i in range(10**12) %}a{% endfor %}"), "f.jsonl:1: The model's"
    ),
    "a template that is none": Case(
        "model", content("chat_template.jinja", b"{% for %}"), "f.jsonl:1: The model's chat template"
    ),
    "an adapter with a pickle": Case("model", adapter(LORA, "adapter_model.bin"), NO_WEIGHTS),
    "an adapter that is a list": Case("model", adapter("[]"), "adapter_config.json: not an object of settings"),
    "an adapter that is nested": Case("model", adapter("[" * 100_000), "adapter_config.json: not valid JSON"),
    "an adapter of itself": Case("model", adapter(LORA | {"base_model_name_or_path": "model"}), "is an adapter too"),
    "an adapter with a false origin": Case(
        "model", lambda m: (adapter(LORA)(m), content("amends.json", b"[")(m)), "amends.json: not valid JSON"
    ),
    "an adapter without base": Case("model", adapter({"base_model_name_or_path": 3}), "FILE: adapter_config.json"),
    "an adapter that imports": Case(
        "model", adapter(LORA | {"megatron_config": {"a": 1}, "megatron_core": "evil"}), "FILE: this adapter does not"
    ),
    "an adapter of an unknown kind": Case(
        "model", adapter(LORA | {"peft_type": "EVIL"}), "FILE: this adapter does not"
    ),
    "an adapter whose tokenizer brings code": Case("model", prompt_with_code, "FILE: this adapter does not fit"),
}


def write_model(case: Case, folder: Path, sound: Path) -> Path:
    """Make the model of a case in a folder, from a copy of a sound one."""
    if case.file != "model":
        return write(case, folder)
    assert callable(case.make)
    case.make(shutil.copytree(sound, folder / "model"))
    return folder / "model"


def main(folder: Path) -> None:
    """Write all, each in a folder of its own, with what is expected beside it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import save_tiny_model

    sound = save_tiny_model(folder / "sound")
    for kind, cases in {"data": DATA, "recipes": RECIPES, "models": MODELS}.items():
        for name, case in cases.items():
            place = folder / kind / name.replace("/", "-").replace(os.sep, "-")
            place.mkdir(parents=True)
            path = write_model(case, place, sound) if kind == "models" else write(case, place)
            print(f"{path}\n    {'read: ' if isinstance(case.says, READ) else ''}{case.says}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
