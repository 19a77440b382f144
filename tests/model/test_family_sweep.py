"""Families of the table in docs/extending.md, tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.family_sweep import row_of, try_family

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
TRIED = (
    "opt", "granite", "olmo2", "olmo3", "glm4", "exaone4", "cohere", "hyperclovax", "bloom", "mpt",
    "falcon_h1", "qwen3_5_text", "bamba", "nemotron_h", "granitemoehybrid", "qwen3_next",
    "llama4_text", "hunyuan_v1_moe", "mamba", "rwkv", "gemma3n_text", "bert", "gpt_neox",
    "gemma3_text", "phi3",
)  # fmt: skip


def documented() -> dict[str, str]:
    """By family, the row of the table that names it."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if "|" in line]
    return {family: row[0] for row in rows[2:] for family in row[1].split(", ")}


@pytest.mark.parametrize("family", TRIED)
def test_the_table_is_right(family):
    found = try_family(family)
    if found.kind == "not built":
        pytest.skip(f"transformers {transformers.__version__} has no {family} like this")
    assert row_of(found) == documented()[family]
