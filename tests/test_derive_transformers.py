"""Symmetries of Hugging Face classes, built from small configurations with random weights: nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from weightspace.derive import derive_symmetry, prove_symmetry
from weightspace.symmetry import Symmetry, SymmetryError

IDS = torch.arange(10).reshape(2, 5)
SIZES: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 2}
WORDS: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LAYERS = 2


def using(attention: str) -> dict[str, Any]:
    """Which code computes attention; the classes take it without naming it in their signatures."""
    return {"attn_implementation": attention}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Transformers logs advice on configurations."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def derived(module: nn.Module, args: tuple[torch.Tensor, ...], **kwargs: object) -> Symmetry:
    """The symmetry of a module whose operations are all known, proven."""
    found = derive_symmetry(module, args, kwargs=kwargs)
    assert found.unknown == ()
    proof = prove_symmetry(module, found.symmetry, args, kwargs=kwargs)
    assert proof.error <= 1e-12  # sums of at most some hundred terms in another order; the proof itself allows 1e-10
    return found.symmetry


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert(attention: str) -> None:
    """The residual stream, which the embeddings share, the pooler, and four groups a layer."""
    config = transformers.BertConfig(**SIZES, **WORDS, max_position_embeddings=8, **using(attention))
    module = transformers.BertForSequenceClassification(config)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    symmetry = derived(module, (IDS,), attention_mask=mask)
    assert len(symmetry.moving) == 1 + 4 * LAYERS + 1
    stream, attention = "bert.embeddings.word_embeddings", "bert.encoder.layer.0.attention.self"
    assert symmetry.axes["bert.embeddings.position_embeddings.weight"] == (None, stream)
    assert symmetry.axes[f"{attention}.key.weight"] == (f"{attention}.heads {attention}.qk", stream)
    assert symmetry.axes[f"{attention}.value.bias"] == (f"{attention}.heads {attention}.vo",)
    assert [(scale.group, scale.kind) for scale in symmetry.scales] == [("bert.pooler.dense", "sign")]  # its tanh


def test_outputs_hold_the_stream() -> None:
    """Without a head BERT gives its residual stream, whose order then matters."""
    module = transformers.BertModel(transformers.BertConfig(**SIZES, **WORDS, max_position_embeddings=8))
    symmetry = derived(module, (IDS,))
    assert len(symmetry.moving) == 4 * LAYERS
    assert "embeddings.word_embeddings.weight" not in symmetry.axes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gpt2(attention: str) -> None:
    """The residual stream and four groups a layer. Embedding and output matrix are one tensor; weights lie inputs
    first, queries, keys and values are parts of one matrix."""
    config = transformers.GPT2Config(n_embd=12, n_head=3, n_layer=LAYERS, n_positions=8, **WORDS, **using(attention))
    symmetry = derived(transformers.GPT2LMHeadModel(config), (IDS,), use_cache=False)
    assert len(symmetry.moving) == 1 + 4 * LAYERS
    assert symmetry.layout.aliases == (("lm_head.weight", "transformer.wte.weight"),)
    assert symmetry.axes["transformer.wte.weight"] == (None, "transformer.wte")
    heads, qk, vo = (f"transformer.h.1.attn.{part}" for part in ("heads", "qk", "vo"))
    parts = f"{heads} {qk} + {heads} {qk} + {heads} {vo}"
    assert symmetry.axes["transformer.h.1.attn.c_attn.weight"] == ("transformer.wte", parts)
    assert symmetry.axes["transformer.h.1.mlp.c_proj.weight"] == ("transformer.h.1.mlp.c_fc", "transformer.wte")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_videomae(attention: str) -> None:
    """Four groups a layer. A fixed table of sines is added to the residual stream, so that its order matters."""
    config = transformers.VideoMAEConfig(
        **SIZES, image_size=8, patch_size=4, num_frames=4, tubelet_size=2, **using(attention)
    )
    symmetry = derived(transformers.VideoMAEForVideoClassification(config), (torch.zeros(2, 4, 3, 8, 8),))
    assert len(symmetry.moving) == 4 * LAYERS
    assert "videomae.embeddings.patch_embeddings.projection.weight" not in symmetry.axes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama(attention: str) -> None:
    """Rotary positions hold the rows of queries and keys; heads of keys move, and the queries that share one.

    The stream; a layer has heads of keys, their queries, rows of values, hidden units. What the gate multiplies may be
    scaled.
    """
    config = transformers.LlamaConfig(
        **(SIZES | {"hidden_size": 16, "num_attention_heads": 4}),
        **WORDS,
        num_key_value_heads=2,
        **using(attention),
    )
    symmetry = derived(transformers.LlamaForCausalLM(config), (IDS,), use_cache=False)
    assert len(symmetry.moving) == 1 + 4 * LAYERS
    assert symmetry.axes["model.layers.0.self_attn.k_proj.weight"][0] == "model.layers.0.self_attn.heads 4"
    scale = symmetry.scales[0]
    assert [tensor for tensor, _, _ in scale.tensors] == [f"model.layers.0.mlp.{n}_proj.weight" for n in ("up", "down")]


def test_shared_layers() -> None:
    """ALBERT runs one layer twice: one set of groups, the width of its embedding, and the pooler."""
    config = transformers.AlbertConfig(**SIZES, **WORDS, embedding_size=8, max_position_embeddings=8)
    symmetry = derived(transformers.AlbertForSequenceClassification(config), (IDS,))
    assert len(symmetry.moving) == 1 + 1 + 4 + 1


def test_relative_positions_by_window() -> None:
    """Swin: a table of biases is read at fixed places, one column a head, which is the head's own."""
    config = transformers.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=2)
    symmetry = derived(transformers.SwinForImageClassification(config), (torch.zeros(2, 3, 16, 16),))
    table = "swin.encoder.layers.0.blocks.1.attention.relative_position_bias.relative_position_bias_table"
    assert symmetry.axes[table] == (None, "swin.encoder.layers.0.blocks.1.attention.heads")
    assert len(symmetry.moving) == 1 + 4 * 2


def test_outputs_that_are_no_tensors_are_a_typed_error() -> None:
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=4, n_head=1, n_layer=1, **WORDS))
    with pytest.raises(SymmetryError, match="use_cache=False"):
        derive_symmetry(module, (IDS,))


@pytest.mark.parametrize(
    "tensor", ["transformer.h.0.ln_1.bias", "transformer.wpe.weight", "transformer.h.0.attn.c_attn.bias"]
)
def test_the_proof_refuses_an_axis_left_out(tensor: str) -> None:
    module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, **WORDS)
    )
    symmetry = derive_symmetry(module, (IDS,), kwargs={"use_cache": False}).symmetry
    axes = {name: entry for name, entry in symmetry.axes.items() if name != tensor}
    with pytest.raises(SymmetryError, match="change the outputs"):
        prove_symmetry(module, Symmetry(symmetry.layout, axes, symmetry.groups), (IDS,), kwargs={"use_cache": False})
