"""A loaded model: segments in, logits out, and text generation on top of that.

Knows batches, caches and sampling; not how a file is laid out, nor what an architecture computes.
Prefill, decode and several sequences at once are one code path: :meth:`Model.step`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kizami import _core, sample, template
from kizami.checkpoint import open_source
from kizami.errors import FormatError, UsageError
from kizami.layers import Batch, Observer, Segment
from kizami.models import Architecture, build
from kizami.repack import Progress, Reads, repacked

# Tokens of one step: the more, the more tokens meet each expert and each rebuilt key (docs/kernels.md).
PREFILL = 2048
# How tokens are remembered: f16 moves no logit measurably where activations are rounded (docs/kernels.md);
# float activations are the reference, and nothing is rounded there.
CACHE_TYPE = {"int8": "f16", "f32": "f32"}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core.after_fork)


@dataclass
class Timings:
    """Seconds and tokens of the last generation."""

    load_s: float = 0.0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    generated_tokens: int = 0
    generated_s: float = 0.0


class Model:
    """A model ready to run. Made by :func:`load`."""

    def __init__(
        self,
        source: Any,
        architecture: Architecture,
        tokenizer: Any,
        *,
        tensors: Mapping[str, _core.Tensor],
        activations: str,
        cache_type: str | None = None,
    ) -> None:
        self.source = source
        self.tensors = tensors
        self.tokenizer = tokenizer
        self.config = architecture.config
        self.activations = activations
        self.cache_type = CACHE_TYPE[activations] if cache_type is None else cache_type
        self.timings = Timings()
        self.decoder = architecture

    def __repr__(self) -> str:
        path = os.fspath(self.source.path)
        return f"Model({path!r}, {len(self.source)} tensors, activations={self.activations})"

    def new_cache(self, type: str | None = None) -> _core.Cache:
        """An empty cache for one sequence, of the model's cache type or of another.

        Raises:
            UsageError: there is no such type.
        """
        return self.decoder.new_cache(self.cache_type if type is None else type)

    def step(self, segments: Sequence[Segment], *, observer: Observer | None = None) -> np.ndarray:
        """Runs segments of different sequences together: float32 logits ``[wanted tokens, vocab]``.

        A sequence's logits do not depend on what else is in the step, to the last bit.
        """
        return self.decoder.forward(Batch(segments, activations=self.activations, observer=observer))

    def logits(self, ids: Sequence[int], *, observer: Observer | None = None) -> np.ndarray:
        """float32 logits ``[n, vocab]`` of every token of one fresh sequence.

        Raises:
            UsageError: no ids, or an id outside of the vocabulary.
        """
        return self.logits_many([ids], observer=observer)[0]

    def logits_many(
        self, sequences: Sequence[Sequence[int]], *, skip: int = 0, observer: Observer | None = None
    ) -> list[np.ndarray]:
        """float32 logits ``[n - skip, vocab]`` for each of several fresh sequences, run together."""
        if not all(len(ids) > skip for ids in sequences):
            raise UsageError(f"token ids: found a sequence of {skip} or fewer, expected more")
        segments = [Segment(ids, self.new_cache(), len(ids) - skip) for ids in sequences]
        logits = self.step(segments, observer=observer)
        return np.split(logits, np.cumsum([s.wanted for s in segments])[:-1])

    def prompt_ids(self, prompt: str | Sequence[dict[str, str]], *, raw: bool = False) -> list[int]:
        """Token ids of a text or of chat messages; a text becomes a user's message unless ``raw``."""
        tok = self.tokenizer
        if raw or tok.chat_template is None:
            if not isinstance(prompt, str):
                raise UsageError("this model has no chat template: found messages, expected a text")
            return tok.encode(prompt, bos=tok.add_bos)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = template.render(
            tok.chat_template,
            messages,
            bos_token="" if tok.bos is None else tok.token(tok.bos),
            eos_token="" if tok.eos is None else tok.token(tok.eos),
            add_generation_prompt=True,
        )
        # The template writes the begin-of-sentence token itself.
        return tok.encode(text)

    def stream_ids(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int = 128,
        sampler: sample.Sampler = sample.greedy,
        n_ctx: int | None = None,
    ) -> Iterator[int]:
        """Token ids that continue ``ids``, one by one, up to an end-of-generation token.

        Raises:
            UsageError: the prompt is empty or does not fit the context.
        """
        limit = self.config.n_ctx_train if n_ctx is None else n_ctx
        if not 1 <= limit <= self.config.n_ctx_train:
            raise UsageError(f"ctx: found {limit}, expected 1 to the model's {self.config.n_ctx_train}")
        if not ids:
            raise UsageError("prompt: found no tokens, expected at least one")
        if len(ids) > limit:
            raise UsageError(f"prompt: found {len(ids)} tokens, expected at most the context of {limit}")
        cache = self.new_cache()
        timings = self.timings = Timings(load_s=self.timings.load_s, prompt_tokens=len(ids))
        start = time.perf_counter()
        for first in range(0, len(ids), PREFILL):
            part = ids[first : first + PREFILL]
            logits = self.step([Segment(part, cache, 1 if first + PREFILL >= len(ids) else 0)])
        timings.prompt_s = time.perf_counter() - start
        start = time.perf_counter()
        for produced in range(max_tokens):
            # Embeddings are often padded past the vocabulary; those ids mean nothing.
            row = logits[-1, : self.tokenizer.vocab_size]
            if not np.isfinite(row).all():
                raise FormatError(
                    f"{os.fspath(self.source.path)}: logits: found NaN or infinity, expected finite numbers; "
                    "the weights are damaged"
                )
            token = sampler(row)
            # The first token came from the prompt's own pass; the rate is that of the passes since.
            timings.generated_tokens = produced
            timings.generated_s = time.perf_counter() - start
            if token in self.tokenizer.eog:
                return
            yield token
            if len(cache) >= limit or produced + 1 == max_tokens:
                return
            logits = self.step([Segment([token], cache)])

    def stream(
        self,
        prompt: str | Sequence[dict[str, str]],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        raw: bool = False,
        n_ctx: int | None = None,
    ) -> Iterator[str]:
        """Pieces of text as they are generated.

        Args:
            prompt: a text, or chat messages with ``role`` and ``content``.
            max_tokens: most tokens to generate.
            temperature: 0 takes the most likely token.
            top_p: probability mass to sample from.
            seed: the same seed gives the same text.
            raw: give the text to the model as it is, without the chat template.
            n_ctx: context in tokens; the model's own if not given.

        Raises:
            UsageError: a parameter is out of range, or the prompt does not fit the context.
        """
        sampler = sample.nucleus(temperature, top_p, seed)
        text = self.tokenizer.stream()
        ids = self.prompt_ids(prompt, raw=raw)
        for token in self.stream_ids(ids, max_tokens=max_tokens, sampler=sampler, n_ctx=n_ctx):
            if piece := text.push(token):
                yield piece
        if piece := text.flush():
            yield piece

    def generate(self, prompt: str | Sequence[dict[str, str]], **options: Any) -> str:
        """The whole continuation as one text; takes the options of :meth:`stream`."""
        return "".join(self.stream(prompt, **options))


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    activations: str = "int8",
    cache_type: str | None = None,
    repack: str = "auto",
    progress: Progress | None = None,
) -> Model:
    """Opens a GGUF file or a published checkpoint directory as a model.

    Weights are mapped, and quantized ones repacked into memory where there is enough of it: the results are
    the same, and come sooner.

    Args:
        path: a ``.gguf`` file (the first of a split set) or a directory with ``config.json``.
        threads: threads to compute with, for the whole process; all cores if not given.
        activations: ``"int8"`` rounds what meets quantized weights to 8 bits; ``"f32"`` does not.
        cache_type: how tokens are remembered: ``"f32"``, ``"f16"`` or ``"q8_0"``; f16 if not given, and f32
            with float activations.
        repack: ``"auto"``, ``"always"`` or ``"never"``; float activations leave weights where they are.
        progress: called with (stage, done, total) while weights are repacked.

    Raises:
        FormatError: the file is damaged or holds something unsupported.
        InputOutputError: it cannot be read.
    """
    if activations not in ("int8", "f32"):
        raise UsageError(f"activations: found {activations!r}, expected 'int8' or 'f32'")
    if cache_type is not None and cache_type not in _core.cache_types():
        known = ", ".join(_core.cache_types())
        raise UsageError(f"cache_type: found {cache_type!r}, expected one of {known}")
    start = time.perf_counter()
    if threads is not None:
        _core.set_threads(threads)
    source = open_source(Path(path))
    model = from_source(
        source, activations=activations, cache_type=cache_type, repack=repack, progress=progress
    )
    model.timings.load_s = time.perf_counter() - start
    return model


def from_source(
    source: Any,
    *,
    activations: str = "int8",
    cache_type: str | None = None,
    repack: str = "auto",
    progress: Progress | None = None,
) -> Model:
    """A model on the weights of an open source; takes the options of :func:`load`."""
    origin = os.fspath(source.path)
    tokenizer = source.tokenizer()
    tensors: Mapping[str, _core.Tensor] = (reads := Reads(source))
    architecture = build(source.metadata, reads, origin)
    vocab = source["token_embd.weight"].shape[0]
    if tokenizer.vocab_size > vocab:
        raise FormatError(
            f"{origin}: vocabulary: found {tokenizer.vocab_size} tokens, expected at most {vocab}"
        )
    if activations == "int8":
        # Everything is checked by now: what takes long comes last, and cannot fail for the file's sake.
        tensors = repacked(reads, architecture.as_rows, repack, progress)
        if tensors is not reads:
            del architecture
            architecture = build(source.metadata, tensors, origin)
    return Model(
        source, architecture, tokenizer, tensors=tensors, activations=activations, cache_type=cache_type
    )
