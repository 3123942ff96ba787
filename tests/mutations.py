"""Damaged and hostile files: seeded mutations of good ones."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator

Header = dict[str, dict]


def safetensors_headers(whole: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` mutations of a `.safetensors` file: what was done to it, and the file."""
    rng = random.Random(seed)
    length = int.from_bytes(whole[:8], "little")
    text, data = whole[8 : 8 + length], whole[8 + length :]
    for i in range(count):
        change = STRUCTURAL[i % len(STRUCTURAL)] if i % 2 else None
        if change:
            yield change.__name__, _file(change(json.loads(text), rng), data)
        elif i % 4:
            yield "bytes of the header", _file(_flipped(text, rng), data)
        else:
            claimed = rng.choice((rng.randrange(2**64), rng.randrange(2 * len(whole)), 2**63, 2**64 - 1, 0, length + 1))
            yield "length of the header", claimed.to_bytes(8, "little") + text + data


def packed_metadata(whole: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` mutations of what a packed file tells of itself, its tensors left alone."""
    rng = random.Random(seed)
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    [key] = header["__metadata__"].keys() - {"format"}
    good = header["__metadata__"][key]
    for i in range(count):
        if i % 4:
            about = json.loads(good)
            what = _anywhere_changed(about, rng)
            header["__metadata__"][key] = json.dumps(about)
        else:
            what = "bytes of the metadata"
            header["__metadata__"][key] = _flipped(good.encode(), rng).decode("latin-1")
        yield what, _file(header, data)


def _anywhere_changed(tree: dict, rng: random.Random) -> str:
    """Changes one value of a tree of objects and lists, or one name, and says which."""
    path = []
    if rng.random() < 0.5:
        tree = tree["matrices"]
    while True:
        places = list(tree) if isinstance(tree, dict) else range(len(tree))
        place = rng.choice(places)
        path.append(str(place))
        if not isinstance(tree[place], (dict, list)) or not tree[place] or rng.random() < 0.2:
            break
        tree = tree[place]
    of_packed = ("fp16", "i8", "rows", "tiles", "input_major", "nk", "kn", "nkknk", "kkknn", "tiles.2", "f" * 16)
    huge = ("x" * 100_000, 10**40, 10**4000, 1e300, [1] * 100_000, {"x": [[]] * 1000})
    value = rng.choice((*of_packed, *huge, 0, -1, 7, 1.5, True, None, "", "\n", [], {}, [33, 16], [16, 33], [[16], 33]))
    if isinstance(tree, dict) and rng.random() < 0.2:
        tree[rng.choice(("", "\n", "head.weight", "ln_out.weight", "x" * 100_000))] = tree.pop(place)
        return f"{'/'.join(path)} renamed"
    if rng.random() < 0.2:
        del tree[place]
        return f"{'/'.join(path)} deleted"
    tree[place] = value
    return f"{'/'.join(path)} = {str(value)[:50]!r}"


def pickles(whole: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` mutations of a `.pth`: of the pickle in a zip, whose checksums stay right, or of a legacy one."""
    rng = random.Random(seed)
    for _ in range(count):
        if not whole.startswith(b"PK"):
            yield "bytes of a legacy pickle", _flipped(whole[:4000], rng) + whole[4000:]
            continue
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(changed, "w") as new:
            for member in old.infolist():
                content = old.read(member)
                pickled = member.filename.endswith("data.pkl")
                new.writestr(member.filename, _flipped(content, rng) if pickled else content)
        yield "bytes of data.pkl", changed.getvalue()


def _file(header: Header | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _one(header: Header, rng: random.Random) -> dict:
    return header[rng.choice([name for name in header if name != "__metadata__"])]


def another_type(header: Header, rng: random.Random) -> Header:
    kinds = ("F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "C64", "F4", "", "\n", 7, None, ["F32"])
    _one(header, rng)["dtype"] = rng.choice(kinds)
    return header


def all_of_another_type(header: Header, rng: random.Random) -> Header:
    kind = rng.choice(("F16", "BF16", "I32", "F64"))
    for tensor in header.values():
        tensor["dtype"] = kind
    return header


def another_shape(header: Header, rng: random.Random) -> Header:
    tensor = _one(header, rng)
    shape = tensor["shape"]
    similar = (shape[::-1], [*shape, 1], [1, *shape], [0, *shape], [])
    huge = ([2**32, 2**32], [2**63, 2], [10**40], [0, 2**62], [1] * 100_000)
    tensor["shape"] = rng.choice((*similar, *huge, [-1], [1.5], [[16]], "no list", None, {}))
    return header


def another_offset(header: Header, rng: random.Random) -> Header:
    tensor = _one(header, rng)
    begin, end = tensor["data_offsets"]
    near = ([end, begin], [begin, begin], [begin + 1, end + 1], [0, end], [-4, end])
    huge = ([begin, 2**63], [2**64 - 4, 2**64], [0, 10**40], [begin, 1e300])
    tensor["data_offsets"] = rng.choice((*near, *huge, [begin], [begin, end, end], None, "no list"))
    return header


def swapped_tensors(header: Header, rng: random.Random) -> Header:
    one, other = _one(header, rng), _one(header, rng)
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
    return header


def another_name(header: Header, rng: random.Random) -> Header:
    name = rng.choice(list(header))
    names = ("", "\n", "x" * 100_000, "blocks.-1.x", "blocks." + "9" * 5000 + ".x", "rwkv." + name, "../../etc/passwd")
    header[rng.choice((*names, "blocks.1000000.ln1.weight", "\u0660\u0000"))] = header.pop(name)
    return header


def one_name_twice(header: Header, rng: random.Random) -> bytes:
    name, other = rng.choice(list(header)), rng.choice(list(header))
    repeated = json.dumps({name: header[other]})
    return (json.dumps(header)[:-1] + ", " + repeated[1:]).encode()


def deep_nesting(header: Header, rng: random.Random) -> bytes:
    depth = rng.choice((100, 1000, 100_000))
    return b'{"a":' * depth + b"1" + b"}" * depth if rng.random() < 0.5 else b"[" * depth


def no_utf8(header: Header, rng: random.Random) -> bytes:
    text = json.dumps(header).encode()
    at = text.index(b"blocks", rng.randrange(len(text) // 2))
    return text[:at] + bytes([rng.choice((0xFF, 0xC0, 0xED))]) + text[at + 1 :]


def many_empty_tensors(header: Header, rng: random.Random) -> Header:
    _, end = max(tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__")
    for i in range(rng.choice((10, 3000))):
        header.setdefault(f"blocks.{i}.ln1.weight", {"dtype": "F32", "shape": [0], "data_offsets": [end, end]})
    return header


def a_field_lost(header: Header, rng: random.Random) -> Header:
    tensor = _one(header, rng)
    del tensor[rng.choice(list(tensor))]
    return header


def no_object(header: Header, rng: random.Random) -> bytes:
    return rng.choice(
        (b"null", b"[]", b"7", b'""', b"", b"{}", b'{"__metadata__": 7}', b'{"x": null}', b" " * 1_000_000)
    )


def metadata(header: Header, rng: random.Random) -> Header:
    """Harmless."""
    return {"__metadata__": {"format": rng.choice(("pt", "np", "\n"))}} | copy.deepcopy(header)


STRUCTURAL: tuple[Callable[[Header, random.Random], Header | bytes], ...] = (
    another_type,
    all_of_another_type,
    another_shape,
    another_offset,
    swapped_tensors,
    another_name,
    one_name_twice,
    deep_nesting,
    no_utf8,
    many_empty_tensors,
    a_field_lost,
    no_object,
    metadata,
)
