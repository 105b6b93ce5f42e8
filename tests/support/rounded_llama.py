"""A Llama model in float64 that rounds to bf16 where the CUDA step does, to nearest or by chance.

Where it rounds: x * weight before a projection, K and V, what attention and SwiGLU give. The rest
of the device's arithmetic is float32, some 2^-13 of such a rounding.

The bound on a logit comes from rounding at random (Parker, "Monte Carlo Arithmetic", 1997): to
first order the error is a sum over all roundings, each anywhere within half a unit of bf16. Copies
of the model whose values are moved by as much at random thus show how far rounding moves a logit,
through all layers, without a guess of how errors grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from servewright_runtime.models.runner import LlamaConfig

Doubles = npt.NDArray[np.float64]
Rounding = Literal["none", "nearest", "random"]

_BITS = 8  # of a bf16's significand, the hidden one included


@dataclass(frozen=True)
class Forward:
    logits: Doubles  # [sequences, tokens, vocab]
    kv: list[Doubles]  # of each layer, [sequences, tokens, K or V, kv_heads, head_dim]


class RoundedLlama:
    """`weight` gives a tensor's values [rows, cols] by its GGUF name, whenever it is used."""

    def __init__(self, config: LlamaConfig, weight: Callable[[str], Doubles]) -> None:
        self.config = config
        self.weight = weight

    def forward(
        self,
        tokens: npt.NDArray[np.integer],
        rounding: Rounding = "none",
        *,
        still: int = 0,
        seed: int = 1,
    ) -> Forward:
        """All of `tokens` [sequences, tokens], causally, the first `still` sequences unrounded."""
        random = np.random.default_rng(seed)

        def rounded(x: Doubles) -> Doubles:
            if rounding == "none":
                return x
            unit = np.ldexp(1.0, np.frexp(x)[1] - _BITS)
            if rounding == "nearest":
                moved = np.rint(x / unit) * unit
            else:
                moved = x + unit * random.uniform(-0.5, 0.5, x.shape)
            moved[:still] = x[:still]
            return np.asarray(moved)

        def normed(name: str, x: Doubles) -> Doubles:
            scale = 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config.norm_eps)
            # The device's product is float32 before it is rounded.
            product = x * self.weight(name)[0]
            if rounding == "nearest":
                product = product.astype(np.float32).astype(np.float64)
            return np.asarray(rounded(product) * scale)

        x = self._embedded(tokens)
        kv = []
        for layer in range(self.config.layers):
            prefix = f"blk.{layer}."
            attended, pair = self._attend(prefix, normed(prefix + "attn_norm.weight", x), rounded)
            kv.append(pair)
            x = x + self._project(prefix + "attn_output.weight", rounded(attended))
            inner = normed(prefix + "ffn_norm.weight", x)
            gate = self._project(prefix + "ffn_gate.weight", inner)
            up = self._project(prefix + "ffn_up.weight", inner)
            activated = rounded(gate / (1 + np.exp(-gate)) * up)
            x = x + self._project(prefix + "ffn_down.weight", activated)
        head = "token_embd.weight" if self.config.tied_head else "output.weight"
        return Forward(self._project(head, normed("output_norm.weight", x)), kv)

    def _embedded(self, tokens: npt.NDArray[np.integer]) -> Doubles:
        return np.asarray(self.weight("token_embd.weight")[tokens])

    def _project(self, name: str, x: Doubles) -> Doubles:
        flat = x.reshape(-1, x.shape[-1]) @ self.weight(name).T
        return np.asarray(flat.reshape(*x.shape[:-1], -1))

    def _rotated(self, x: Doubles) -> Doubles:
        """x: [sequences, tokens, heads, head_dim], adjacent pairs."""
        c = self.config
        pairs = np.arange(c.rope_dims // 2)
        frequencies = c.rope_scale * c.rope_base ** (-2.0 * pairs / c.rope_dims)
        if c.rope_factors is not None:
            frequencies = frequencies / np.array(c.rope_factors, np.float32)
        angle = np.arange(x.shape[1])[:, None, None] * frequencies
        cosine, sine = np.cos(angle), np.sin(angle)
        out = x.copy()
        even, odd = x[..., 0 : c.rope_dims : 2], x[..., 1 : c.rope_dims : 2]
        out[..., 0 : c.rope_dims : 2] = even * cosine - odd * sine
        out[..., 1 : c.rope_dims : 2] = odd * cosine + even * sine
        return out

    def _attend(
        self, prefix: str, x: Doubles, rounded: Callable[[Doubles], Doubles]
    ) -> tuple[Doubles, Doubles]:
        c, (sequences, length, _) = self.config, x.shape

        def heads(name: str, count: int) -> Doubles:
            flat = self._project(prefix + name, x)
            return flat.reshape(sequences, length, count, c.head_dim)

        q = self._rotated(heads("attn_q.weight", c.heads))
        k = rounded(self._rotated(heads("attn_k.weight", c.kv_heads)))
        v = rounded(heads("attn_v.weight", c.kv_heads))
        group = c.heads // c.kv_heads
        q = q.reshape(sequences, length, c.kv_heads, group, c.head_dim) / np.sqrt(c.head_dim)
        # [sequences, kv_heads, group, tokens, positions]
        scores = q.transpose(0, 2, 3, 1, 4) @ k.transpose(0, 2, 3, 1)[:, :, None]
        scores[..., ~np.tri(length, dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = (weights @ v.transpose(0, 2, 1, 3)[:, :, None]).transpose(0, 3, 1, 2, 4)
        return attended.reshape(sequences, length, -1), np.stack([k, v], axis=2)


class DensePrefill(RoundedLlama):
    """The first `tokens` of each sequence meet weights of the layers that were rounded to bf16.

    By chance, where cuda/prefill.py rounds them to nearest, and not those of the first sequence.
    """

    def __init__(
        self, config: LlamaConfig, weight: Callable[[str], Doubles], tokens: int, seed: int = 2
    ) -> None:
        super().__init__(config, weight)
        self._tokens = tokens
        self._random = np.random.default_rng(seed)

    def _project(self, name: str, x: Doubles) -> Doubles:
        weight = self.weight(name)
        out = np.asarray(x @ weight.T)
        if name.startswith("blk."):
            unit = np.ldexp(1.0, np.frexp(weight)[1] - _BITS)
            moved = weight + unit * self._random.uniform(-0.5, 0.5, weight.shape)
            out[1:, : self._tokens] = x[1:, : self._tokens] @ moved.T
        return out


@dataclass(frozen=True)
class Bounded:
    """[sequences, tokens, vocab]"""

    exact: Doubles
    spread: Doubles  # standard deviation under random rounding


def bounded(
    model: RoundedLlama, tokens: npt.NDArray[np.integer], *, copies: int, is_centred: bool = False
) -> Bounded:
    """Logits of `tokens` [sequences, tokens] without rounding, and how rounding moves them.

    is_centred: each row less its mean, as a shift of all logits changes no probability.
    """
    count = len(tokens)
    many = np.concatenate([tokens] * (1 + copies))
    logits = model.forward(many, "random", still=count).logits
    if is_centred:
        logits = centred(logits)
    exact, moved = logits[:count], logits[count:].reshape(copies, count, *logits.shape[1:])
    return Bounded(exact, np.sqrt(((moved - exact) ** 2).mean(axis=0)))


def centred(x: Doubles) -> Doubles:
    """Less the mean over the last axis."""
    return np.asarray(x - x.mean(axis=-1, keepdims=True))


def rms(x: Doubles) -> Doubles:
    """Over the last axis."""
    return np.asarray(np.sqrt((x**2).mean(axis=-1)))
