"""Sources of general text for statistics, as chunks of token rows.

A source is named by one string (``mom2_dataset`` in the hparams):

- ``self``: text that the model itself generates;
- the name of a registered text, e.g. ``atlas`` and ``factbook``
  (:mod:`nse_plugin.data.texts`);
- ``file:PATH``, or a path to a ``.txt`` file: one document per line;
- otherwise a dataset of the ``datasets`` library, ``name`` or ``name:config``, or one of
  EasyEdit's names for those (``wikipedia``, ``wikitext``, ``wikitext2``).

The choice of texts is deterministic.  Chunks are numbered, and each can be made without those
before it, so an interrupted pass can be resumed.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from nse_plugin.errors import StatisticsError
from nse_plugin.files import checksum, require
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.sampling import sample_ids
from nse_plugin.statistics.named_texts import NAMED_TEXTS

log = logging.getLogger(__name__)

CHUNK = 256
"""Texts per chunk; rows are sorted by length within a chunk."""
SELF_TOKENS = 64
"""Longest sampled text, in tokens."""
SELF_CHUNK = 32
"""Sampled texts per chunk; small, so that progress is saved within a minute."""
_SHUFFLE_BUFFER = 10_000  # documents of a stream that are shuffled together

DATASETS = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
"""EasyEdit's names for datasets: (name, config) on the hub."""


def chunk_size(source: str) -> int:
    """Texts per chunk of a source."""
    return SELF_CHUNK if source == "self" else CHUNK


def source_slug(source: str) -> str:
    """The source's name as part of a folder name."""
    path = text_file(source)
    name = path.stem if path is not None else source
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "text"


def source_digest(source: str) -> str | None:
    """A short hash of a named text or a text file; None if it cannot be determined."""
    if source in NAMED_TEXTS:
        return NAMED_TEXTS[source].digest
    path = text_file(source)
    if path is None or not path.is_file():
        return None
    return checksum(path)[:16]


def text_file(source: str) -> Path | None:
    """The path that a source names, or None if it is no text file."""
    if source in ("self", *NAMED_TEXTS, *DATASETS):
        return None
    if source.startswith("file:"):
        return Path(os.path.expanduser(source.removeprefix("file:")))
    path = Path(os.path.expanduser(source))
    return path if path.suffix == ".txt" or path.is_file() else None


def token_chunks(
    source: str,
    layout: DecoderLayout,
    tokenizer: Any,
    *,
    n_samples: int,
    max_length: int,
    first: int = 0,
) -> Iterator[list[list[int]]]:
    """Read, or sample, the token rows of a source, :func:`chunk_size` texts at a time.

    Args:
        n_samples: number of texts; all of them if the source has fewer.
        max_length: longest row in tokens; the rest is cut off.
        first: number of the first chunk.

    Raises:
        StatisticsError: the source cannot be read, or holds no text.
    """
    if source == "self":
        yield from _sampled_chunks(layout, tokenizer, n_samples, max_length, first)
        return
    documents = _documents(source, n_samples)
    n_read = sum(1 for _ in itertools.islice(documents, first * CHUNK))
    while chunk := list(itertools.islice(documents, CHUNK)):
        n_read += len(chunk)
        rows = tokenizer(chunk, verbose=False)["input_ids"]
        yield [list(row[:max_length]) for row in rows if len(row)]
    if n_read == 0:
        raise StatisticsError(
            f"source {source!r} holds no text; name a source that does, or mom2_dataset: self"
        )
    if n_read < n_samples:
        log.warning("source %r has %d of %d texts; all are used", source, n_read, n_samples)


def _documents(source: str, n_samples: int) -> Iterator[str]:
    path = text_file(source)
    if path is not None:
        return _lines(path, n_samples)
    if source in NAMED_TEXTS:
        texts = [text for text in NAMED_TEXTS[source].documents() if text.strip()]
        random.Random(0).shuffle(texts)
        return iter(texts[:n_samples])
    return _streamed(source, n_samples)


def _lines(path: Path, n_samples: int) -> Iterator[str]:
    """The shuffled non-blank lines of a file; only their offsets are kept in memory."""
    places, place = [], 0
    try:
        with path.open("rb") as handle:
            for line in handle:
                if line.strip():
                    places.append(place)
                place += len(line)
            random.Random(0).shuffle(places)
            for place in places[:n_samples]:
                handle.seek(place)
                yield handle.readline().decode("utf-8").strip()
    except OSError as error:
        raise StatisticsError(
            f"text file {path} cannot be read ({error.strerror or error}); give the path of a "
            "file with one document per line, or mom2_dataset: self"
        ) from error
    except UnicodeDecodeError as error:
        raise StatisticsError(
            f"text file {path} is not UTF-8 in the line that starts at byte {place}; convert it"
        ) from error


def _streamed(source: str, n_samples: int) -> Iterator[str]:
    """Documents of a dataset of the ``datasets`` library, streamed."""
    given, _, kind = source.partition(":")
    name, config = DATASETS.get(source, (given, kind or None))
    ways_out = (
        "put existing statistics files into stats_dir, or use local text: "
        "mom2_dataset: file:PATH (one document per line) or mom2_dataset: self"
    )
    datasets = require("datasets", f"mom2_dataset {source!r}", otherwise=f"or {ways_out}")
    n_read = 0
    try:
        dataset = datasets.load_dataset(name, config, split="train", streaming=True)
        dataset = dataset.shuffle(seed=0, buffer_size=_SHUFFLE_BUFFER)
        for text in itertools.islice(_texts(dataset, source), n_samples):
            n_read += 1
            yield text
    except StatisticsError:
        raise
    except Exception as error:  # the hub fails in many ways
        raise StatisticsError(
            f"source {source!r} (dataset {name!r}) gave {n_read} texts, then "
            f"{type(error).__name__}: {error}; try again later, {ways_out}"
        ) from error


def _texts(dataset: Iterable[dict[str, Any]], source: str) -> Iterator[str]:
    """The non-blank texts of a dataset."""
    for record in dataset:
        text = record.get("text")
        if not isinstance(text, str):
            raise StatisticsError(
                f"source {source!r} has no column 'text' but {', '.join(record)}; name a dataset "
                "that has one, or a file: file:PATH"
            )
        if text.strip():
            yield text


def _sampled_chunks(
    layout: DecoderLayout, tokenizer: Any, n_samples: int, max_length: int, first: int
) -> Iterator[list[list[int]]]:
    """Rows sampled from the model's full distribution, up to their end-of-text token.

    A start token that the tokenizer does not put before texts is only used to begin sampling.
    """
    length = min(SELF_TOKENS, max_length)
    start_id = tokenizer.bos_token_id
    keep_start = start_id is None or tokenizer("a")["input_ids"][:1] == [start_id]
    n_sampled = length - 1 if keep_start else min(length, (layout.max_positions or length + 1) - 1)
    for number in range(first, -(-n_samples // SELF_CHUNK)):
        generator = torch.Generator().manual_seed(number)
        n_rows = min(SELF_CHUNK, n_samples - number * SELF_CHUNK)
        starts = _starts(layout, tokenizer, n_rows, generator)
        more = sample_ids(layout.model, starts, n_sampled, top_k=None, generator=generator)
        rows: list[list[int]] = []
        for start, row in zip(starts.tolist(), more.tolist()):
            end = _find(row, tokenizer.eos_token_id)
            rows.append(start + row[:end] if keep_start else row[: max(end, 1)])
        yield rows


def _starts(
    layout: DecoderLayout, tokenizer: Any, n_rows: int, generator: torch.Generator
) -> torch.Tensor:
    """[rows, 1]: the start token, or ordinary tokens at random if there is none."""
    if tokenizer.bos_token_id is not None:
        return torch.full((n_rows, 1), tokenizer.bos_token_id)
    n_vocab = min(len(tokenizer), layout.model.get_input_embeddings().weight.shape[0])
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([index for index in range(n_vocab) if index not in special])
    return ordinary[torch.randint(len(ordinary), (n_rows, 1), generator=generator)]


def _find(row: list[int], token: int | None) -> int:
    """Index of the first such token, or the length of the row."""
    return row.index(token) if token in row else len(row)
