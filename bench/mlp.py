"""A small network beside onnxruntime, as a user calls each from Python.

    python bench/mlp.py [--write-docs]

784-128-128-10, ReLU and softmax, the same weights, in one process, turn by turn: each turn times 50
calls of one engine after the other, in changing order. A call's time is the median over turns, with
the tenth and the ninetieth percentile; the ratio is taken within a turn. onnxruntime has float32
weights; it runs with its defaults and with one thread, and the faster of the two counts.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Run as a file, and of this checkout, whatever is installed.
sys.path[:0] = [str(ROOT), str(ROOT / "operator"), str(ROOT / "runtime"), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from bench import machine, page  # noqa: E402

from servewright_runtime import native  # noqa: E402
from servewright_runtime.ops import WEIGHT_TYPES, Mlp  # noqa: E402

WIDTHS = (784, 128, 128, 10)
ACTIVATIONS = ("relu", "relu", "softmax")
BATCHES = (1, 8, 64)
CALLS = 50  # of a turn, at batch 1
TARGET = 1 / 3
OURS = {kind: f"servewright, {kind} weights" for kind in WEIGHT_TYPES}
# Of a probability, by the rounding of weights and, with float32, of sums.
ERRORS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
RIVAL, RIVAL_ALONE = "onnxruntime", "onnxruntime, 1 thread"

Array = npt.NDArray[Any]
Call = Callable[[], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--write-docs", action="store_true", help="renew docs/performance.md")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)
        for cols, rows in itertools.pairwise(WIDTHS)
    ]
    biases = [rng.standard_normal(rows).astype(np.float32) for rows in WIDTHS[1:]]
    times = {
        batch: measure(engines(weights, biases, batch), max(2, CALLS // batch), arguments.turns)
        for batch in BATCHES
    }
    text = render(times, arguments.turns)
    print(text)
    if arguments.write_docs:
        page.write("mlp", text)
    return 0


def engines(weights: list[Array], biases: list[Array], batch: int) -> dict[str, Call]:
    """One call of each on the same rows. Raises AssertionError if they disagree."""
    import onnxruntime

    x = np.random.default_rng(batch).standard_normal((batch, WIDTHS[0])).astype(np.float32)
    model = onnx_model(weights, biases)

    def session(threads: int) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: its own choice
        made = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: made.run(None, {"x": x})[0]

    def network(weight_type: str) -> Call:
        made = Mlp(weights, biases, ACTIVATIONS, weight_type=weight_type)
        return lambda: made(x)

    calls = {name: network(kind) for kind, name in OURS.items()}
    calls |= {RIVAL: session(0), RIVAL_ALONE: session(1)}
    wanted = calls[RIVAL_ALONE]()
    for kind, name in OURS.items():
        assert abs(calls[name]() - wanted).max() < ERRORS[kind]
    return calls


def onnx_model(weights: list[Array], biases: list[Array]) -> bytes:
    """The network as Gemm, Relu and Softmax."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, at = [], [], "x"
    for index, (w, b, activation) in enumerate(zip(weights, biases, ACTIVATIONS, strict=True)):
        constants += [numpy_helper.from_array(w, f"w{index}")]
        constants += [numpy_helper.from_array(b, f"b{index}")]
        inputs = [at, f"w{index}", f"b{index}"]
        nodes.append(helper.make_node("Gemm", inputs, [f"z{index}"], transB=1))
        nodes.append(helper.make_node(activation.capitalize(), [f"z{index}"], [f"y{index}"]))
        at = f"y{index}"
    sizes = [("x", WIDTHS[0]), (at, WIDTHS[-1])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in sizes]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], constants)
    opset = [helper.make_opsetid("", 20)]
    model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return model


def measure(calls: dict[str, Call], count: int, turns: int) -> dict[str, list[float]]:
    """Seconds a call, by engine and turn."""
    for call in calls.values():
        timed(call, count)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        names = list(calls)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(timed(calls[name], count))
    return times


def timed(call: Call, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def render(times: dict[int, dict[str, list[float]]], turns: int) -> str:
    began = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    import onnxruntime

    lines = [
        f"Measured {began} at commit {machine.commit()}: {turns} turns, microseconds a call, "
        f"median (10th to 90th percentile). onnxruntime {onnxruntime.__version__}; kernels "
        f"{native.chosen_variant()}. The ratio is to the faster onnxruntime of each turn.",
        "",
        "| batch | engine | us a call | ratio | target | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for batch, engines_times in times.items():
        rivals = zip(engines_times[RIVAL], engines_times[RIVAL_ALONE], strict=True)
        fastest = [min(pair) for pair in rivals]
        for name, values in engines_times.items():
            row = [str(batch), name, spread([value * 1e6 for value in values], 1)]
            if name in OURS.values():
                ratios = [ours / rival for ours, rival in zip(values, fastest, strict=True)]
                row.append(spread(ratios, 2))
                if batch == 1:
                    row += ["<= 1/3", "yes" if statistics.median(ratios) <= TARGET else "no"]
            row += [""] * (6 - len(row))
            lines.append(f"| {' | '.join(row)} |")
    facts = "; ".join(f"{key}: {value}" for key, value in machine.facts().items())
    return "\n".join([*lines, "", f"Machine: {facts}.", ""])


def spread(values: Sequence[float], digits: int) -> str:
    tenths = statistics.quantiles(values, n=10)
    low, middle, high = tenths[0], statistics.median(values), tenths[-1]
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
