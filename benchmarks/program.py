"""What a compiled program does, read off its HLO text."""

import re
from collections.abc import Iterator

import numpy as np

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8}
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\](\{[^{}]*\})?")
COLLECTIVES = [
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
]
MOVES_NOTHING = [
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "after-all",
    "partition-id",
    "iota",
]


class Instruction:
    """One line of an HLO text: `name = shape opcode(operands), attributes`."""

    def __init__(self, line: str):
        name, _, text = re.sub(r"/\*.*?\*/", "", line).strip().partition(" = ")
        self.name = name.removeprefix("ROOT ")
        self.is_root = name.startswith("ROOT ")
        stop = _balanced(text) if text.startswith("(") else text.index(" ")
        self.shape, text = text[:stop], text[stop:].strip()
        self.opcode, _, text = text.partition("(")
        stop = _balanced("(" + text) - 1
        self.inside, self.attributes = text[: stop - 1], text[stop:]
        self.operands = re.findall(r"%[\w.\-]+", self.inside)

    def called(self, kind: str) -> str | None:
        """The computation that an attribute names, e.g. "body" or "calls"."""
        found = re.search(rf"\b{kind}=(%[\w.\-]+)", self.attributes)
        return found and found[1]


def _balanced(text: str) -> int:
    """Where the parenthesis that `text` starts with is closed, plus one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place + 1
    raise ValueError(f"unbalanced: {text[:80]}")


def array_bytes(shape: str, *, hbm: bool = False) -> list[int]:
    """Bytes of every array of a shape; with `hbm`, 0 for those in another memory of the chip."""
    return [
        0
        if hbm and re.search(r"S\([1-9]\)", layout)
        else ITEM_BYTES.get(kind, 4) * int(np.prod([int(n) for n in sizes.split(",") if n]))
        for kind, sizes, layout in ARRAY.findall(shape)
    ]


def _sizes(shape: str) -> list[int]:
    return [int(n) for n in ARRAY.findall(shape)[0][1].split(",") if n]


class Program:
    """A compiled program as text, and how often its parts run."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line)
            if header:
                current = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
            elif " = " in line and line.startswith("  "):
                instruction = Instruction(line)
                current[instruction.name] = instruction

    def runs(self, name: str = "", times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction outside of fusions, with its computation and how often it runs."""
        name = name or self.entry
        for instruction in self.computations[name].values():
            yield name, instruction, times
            if instruction.opcode == "while":
                body, condition = instruction.called("body"), instruction.called("condition")
                assert body and condition
                yield from self.runs(body, times * self.trips(condition))
            elif instruction.opcode == "call":
                yield from self.runs(instruction.called("to_apply") or "", times)
            elif instruction.opcode == "conditional":
                raise ValueError(f"not counted: {instruction.name}")
            elif instruction.opcode == "async-start":
                yield from self.runs(instruction.called("calls") or "", times)

    def trips(self, condition: str) -> int:
        """Of a loop that counts from zero to a constant, as `lax.scan` makes it."""
        found = [
            int(instruction.inside)
            for instruction in self.computations[condition].values()
            if instruction.opcode == "constant"
        ]
        if len(found) != 1:
            raise ValueError(f"{condition}: expected one constant, got {found}")
        return found[0]

    def flops(self) -> float:
        """Of all matrix products."""
        return float(sum(times * self._flops(name, one) for name, one, times in self.runs()))

    def _flops(self, name: str, instruction: Instruction) -> int:
        if instruction.opcode == "fusion":
            inner = instruction.called("calls") or ""
            return sum(self._flops(inner, one) for one in self.computations[inner].values())
        if instruction.opcode not in ("convolution", "dot"):
            return 0
        left, right = (_sizes(self.computations[name][o].shape) for o in instruction.operands[:2])
        output = int(np.prod(_sizes(instruction.shape)))
        if instruction.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
            assert axes
            return 2 * output * int(np.prod([left[int(a)] for a in axes[1].split(",") if a]))
        return _convolution_flops(instruction, left, right)

    def moved(self) -> float:
        """Bytes read from and written to HBM."""
        return float(sum(times * self._moved(name, one) for name, one, times in self.runs()))

    def _moved(self, name: str, instruction: Instruction) -> int:
        opcode = instruction.opcode
        if opcode in MOVES_NOTHING or opcode.endswith("-done"):
            return 0
        if opcode == "async-start" or "AllocateBuffer" in instruction.attributes:
            return 0
        if opcode == "copy-start":
            return sum(array_bytes(instruction.shape, hbm=True)[:2])
        if opcode == "slice-start":
            made = array_bytes(instruction.shape)[-2]
            return sum(min(made, size) for size in array_bytes(instruction.shape, hbm=True)[:-1])
        computation = self.computations[name]
        written = self._written(computation, instruction)
        return written + sum(
            self._read(computation, instruction, place)
            for place in range(len(instruction.operands))
        )

    def _written(self, computation: dict[str, Instruction], instruction: Instruction) -> int:
        """Of an array that is updated in place only the new part counts."""
        whole = sum(array_bytes(instruction.shape, hbm=True))
        if instruction.opcode == "dynamic-update-slice":
            update = sum(array_bytes(computation[instruction.operands[1]].shape))
            return min(whole, update)
        if instruction.opcode in ("bitcast", "tuple"):
            made = [computation[o] for o in instruction.operands]
            return min(whole, sum(self._written(computation, one) for one in made))
        if instruction.opcode == "fusion":
            inner = self.computations[instruction.called("calls") or ""]
            root = next(one for one in inner.values() if one.is_root)
            return min(whole, self._written(inner, root)) if whole else 0
        return whole

    def _read(
        self, computation: dict[str, Instruction], instruction: Instruction, place: int
    ) -> int:
        """Of an operand; of one that is sliced only the slice counts."""
        operand = computation[instruction.operands[place]]
        whole = sum(array_bytes(operand.shape, hbm=True))
        if instruction.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
            return min(whole, sum(array_bytes(instruction.shape)))
        if instruction.opcode == "dynamic-update-slice" and place == 0:
            return 0
        if instruction.opcode == "fusion" and whole:
            return min(whole, self._read_in(instruction.called("calls") or "", place))
        return whole

    def _read_in(self, name: str, place: int) -> int:
        """Bytes that a fusion reads of one of its parameters."""
        computation = self.computations[name]
        parameter = next(
            one
            for one in computation.values()
            if one.opcode == "parameter" and one.inside == str(place)
        )
        total, names = 0, [parameter.name]
        for instruction in computation.values():
            for at, operand in enumerate(instruction.operands):
                if operand not in names:
                    continue
                if instruction.opcode in ("bitcast", "get-tuple-element"):
                    names.append(instruction.name)
                elif instruction.opcode == "fusion":
                    total += self._read_in(instruction.called("calls") or "", at)
                elif instruction.opcode in ("dynamic-slice", "slice", "gather") and at == 0:
                    total += sum(array_bytes(instruction.shape))
                elif instruction.opcode != "dynamic-update-slice" or at:
                    total += sum(array_bytes(parameter.shape))
        return total

    def collectives(self) -> list[tuple[str, int, int]]:
        """Of each collective its kind, the bytes of its result, and how often it runs."""
        found = []
        for _, instruction, times in self.runs():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            sizes = array_bytes(instruction.shape)
            # What is started has its operands beside its results.
            if instruction.opcode in ("all-gather-start", "collective-permute-start"):
                sizes = sizes[len(instruction.operands) : 2 * len(instruction.operands)]
            found.append((kind, sum(sizes), times))
        return found


def _convolution_flops(instruction: Instruction, left: list[int], right: list[int]) -> int:
    """Of a product that the TPU compiler writes as a convolution, padding and holes left out."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels
    of_left, of_right, of_output = labels.groups()
    output = dict(zip(of_output, _sizes(instruction.shape), strict=True))
    kernel = dict(zip(of_right, right, strict=True))
    values = dict(zip(of_left, left, strict=True))
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(instruction)))
    total = 2 * output["b"] * output["f"] * kernel["i"]
    for axis in range(len(of_output) - 2):

        def setting(key: str, default: str, axis: int = axis) -> str:
            return window[key].split("x")[axis] if key in window else default

        stride, holes = int(setting("stride", "1")), int(setting("lhs_dilate", "1"))
        spread = int(setting("rhs_dilate", "1"))
        before = int(setting("pad", "0_0").split("_")[0])
        label = str(axis)
        place = np.arange(output[label])[:, None] * stride - before
        place = place + np.arange(kernel[label]) * spread
        there = (place % holes == 0) & (place >= 0) & (place <= (values[label] - 1) * holes)
        total *= int(there.sum())
    return total


def _window(instruction: Instruction) -> str:
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    return found[1] if found else ""
