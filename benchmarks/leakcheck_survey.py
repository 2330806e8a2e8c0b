"""Leak-check every causal language model of the installed `transformers`, each tiny and with random weights.

    python benchmarks/leakcheck_survey.py --out docs/results/leakcheck
    python benchmarks/leakcheck_survey.py --out docs/results/leakcheck --only gpt2 llama

Prints and records, for each model type, what each check found. Each model is checked in a process of its own, so that
one that crashes or hangs costs no more than its own row.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mu_sota import MuConfig
from mu_sota.common import environment
from mu_sota.common.files import replacing, write_json
from mu_sota.common.text import one_line
from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.resolve_model import resolve
from mu_sota.leakcheck.tolerance import TOLERANCES
from mu_sota.model.errors import InputError

LAYERS = 3
"""Layers of a model whose layers are all of one kind; else one of each kind, and at least so many."""

MOST_LAYERS = 6

SMALL = {
    64: (
        "hidden_size n_embd d_model emb_dim embedding_dim embedding_size input_embedding_size output_embedding_size "
        "word_embed_proj_dim lru_width attention_hidden_size router_hidden_size"
    ),
    96: (
        "vocab_size decoder_vocab_size intermediate_size intermediate_size_mlp dense_intermediate_size "
        "shared_intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim ffn_hidden_size dff dim_ff d_inner "
        "feed_forward_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size"
    ),
    128: (
        "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_target_positions "
        "max_source_positions"
    ),
    48: "q_lora_rank",
    32: (
        "index_n_heads "  # of few heads, scores of exactly 0 are many, and which of them topk takes is arbitrary
        "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size kv_lora_rank pronunciation_embed_dim shape_embed_dim "
        "hidden_size_per_layer_input position_bias_num_buckets position_bias_max_distance prompt_length rel_extent"
    ),
    # Windows, chunks and blocks: well below the 61 tokens of a check.
    16: (
        "sliding_window sliding_window_size attention_window_size window_size local_attention attention_chunk_size "
        "chunk_size mamba_chunk_size block_size keep_window_size index_topk index_block_size local_attn_chunk_length "
        "lsh_attn_chunk_length local_attention_window_len mem_len relative_max_distance floor_scale "
        # and sizes of heads and states
        "head_dim swa_head_dim d_head dim_head attention_head_size attention_head_dim kv_channels v_head_dim "
        "qk_nope_head_dim index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head "
        "mamba_head_dim mamba_headdim state_size mamba_d_state ssm_state_size query_pre_attn_scalar o_lora_rank "
        "gated_norm_rank hc_lowrank ple_embed_dim adapter_rank laurel_rank num_buckets prompt_mid_dim"
    ),
    8: (
        "qk_rope_head_dim rotary_dim num_experts n_routed_experts num_local_experts moe_num_experts num_expert "
        "mamba_n_heads mamba_num_heads d_rel rope_head_dim original_max_position_embeddings"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
        "linear_num_heads linear_num_value_heads n_mamba_heads time_step_rank mamba_dt_rank zero_expert_num"
    ),
    LAYERS: (
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers num_blocks"
    ),
    2: (
        "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k n_group num_expert_group "
        "n_groups o_groups mamba_n_groups num_hash_layers index_topk_blocks num_random_blocks"
    ),
    1: "topk_group n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers",
}
"""Fields of a configuration that are cut down to a size, where they are larger."""

LAYER_FIELDS = SMALL[LAYERS].split()
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups")
SPREADS = ("initializer_range", "init_std", "embedding_initializer_range")
SPREAD = 0.2
"""Default standard deviation of initial weights: ten times the usual, so that attention is far from uniform. In 16-bit
formats rounding alone then moves the logits too far for any comparison of different shapes: there, give the usual."""

DERIVED = {"head_dim": ("qk_rope_head_dim",), "intermediate_size": ("expand",)}
"""Fields that follow from others, where those are there."""

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2}
"""Ids outside the small vocabulary become these."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "use_cache": False,  # the class makes a cache from a configuration without a number of layers
        "vocab_size": 260,
        "encoder_hash_byte_group_vocab": 512,
        "patching_threshold": 5.08,  # near what random weights give, so that patches have several lengths
        "patcher_config": {"vocab_size": 260},
        "encoder_config": {"vocab_size": 260, "hidden_size_global": 128},
        "decoder_config": {"vocab_size": 260, "hidden_size_global": 128},
        "global_config": {"hidden_size": 128, "head_dim": 32},
    },
    "blenderbot": {"encoder_layers": 3},  # the cache gets as many layers as the encoder
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 8, "moe_topk": 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [32, 32],
        "hash_seed": 0,
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 32,
    },
}
QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "ple_embed_dim": 64,
    "ngram_vocab_size_base": 512,
    "split_ngram_parts": 4,
    "eos_token_id": 2,
}
DOTS3_HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
DOTS3_LAYERS = {layer: DOTS3_HEADS | {"n_routed_experts": 8} for layer in ("0", "1", "2")}
OVERRIDES |= {
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "dots3_note": {
        "text_config": {"per_layer_config": DOTS3_LAYERS},
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_out_dim": 64, "adapter_input_size": 64},
    },
    "dots3_note_text": {"per_layer_config": DOTS3_LAYERS},
}
"""What the general rule does not get right."""

ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
VARIANTS: dict[str, list[dict[str, Any]]] = {name: [{"is_decoder": True}] for name in ENCODERS} | {
    "deepseek_v32": [{"index_n_heads": 4}],
    "doge": [{"keep_window_size": 2048}],
    "hrm_text": [{"prefix_lm": False}],
    "llama4_text": [{"floor_scale": 8192}],
    "mamba2": [{"time_step_limit": [0.001, 1e9]}],
    "moshi": [{"sliding_window": 3000}],
    "nemotron_h": [{"time_step_min": 1e-30}],
    "phi4_multimodal": [{"original_max_position_embeddings": 4096}],
    "qwen2": [{"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}],
    "reformer": [{"attn_layers": ["local", "local", "local"]}],
    "xlm": [{"causal": True}],
    "xlnet": [{"attn_type": "uni"}],
    "zamba2": [{"time_step_min": 1e-30}],
}
"""Further settings under which a type is checked."""


class Case(NamedTuple):
    """A model to check: a type, and what is set beyond the general rule."""

    type: str
    variant: dict[str, Any]

    @property
    def name(self) -> str:
        return " ".join([self.type, *(f"{key}={value}" for key, value in self.variant.items())])


def main() -> None:
    """Check, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="model types to check again, merged into the record")
    parser.add_argument("--dtype", choices=[str(dtype)[6:] for dtype in TOLERANCES], default="float32")
    parser.add_argument("--spread", type=float, default=SPREAD, help="standard deviation of initial weights")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for one model")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    stem = "transformers" if arguments.dtype == "float32" else f"transformers-{arguments.dtype}"
    file = arguments.out / f"{stem}.json"
    unknown = set(arguments.only or ()) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if unknown:
        parser.error(f"no causal language models of transformers: {', '.join(sorted(unknown))}")
    cases = [
        Case(name, variant)
        for name in sorted(arguments.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - {MuConfig.model_type})
        for variant in [{}, *VARIANTS.get(name, [])]
    ]
    earlier = json.loads(file.read_text(encoding="utf-8"))["models"] if arguments.only and file.exists() else {}
    models = {name: entry for name, entry in earlier.items() if name.partition(" ")[0] not in arguments.only}
    base = arguments.out / "transformers.json"
    reference = {}
    if arguments.dtype != "float32" and base.exists():
        reference = json.loads(base.read_text(encoding="utf-8"))["models"]
    start = time.monotonic()
    for number, case in enumerate(cases):
        models[case.name] = entry = _apart(case, arguments.dtype, arguments.spread, arguments.timeout)
        spent = time.monotonic() - start
        left = spent / (number + 1) * (len(cases) - number - 1)
        print(f"[{number + 1}/{len(cases)}, {left / 60:.0f} min left] {case.name}: {_said(entry)}", flush=True)
        if number % 10 == 9 or number == len(cases) - 1:
            models = dict(sorted(models.items()))
            record = {
                "what": "leak checks of every causal language model of transformers, tiny and with random weights",
                "transformers": transformers.__version__,
                "dtype": arguments.dtype,
                "spread_of_initial_weights": arguments.spread,
                "counts": _counts(models),
                "exactness": _exactness(models, reference or models),
                "machine": environment.describe(),
                "models": models,
            }
            write_json(file, record)
    with replacing(arguments.out / f"{stem}.md") as temporary:
        temporary.write_text(_table(models), encoding="utf-8")
    print(f"\n{_table(models)}\n{json.dumps(_counts(models))}")


def _apart(case: Case, dtype: str, spread: float, timeout: float) -> dict[str, Any]:
    """`_checked` in a process of its own."""
    start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, case, dtype, spread))
    start = time.monotonic()
    process.start()
    theirs.close()
    entry: dict[str, Any]
    try:
        entry = ours.recv() if ours.poll(timeout) else {"reason": f"not done after {timeout:.0f} seconds"}
    except EOFError:
        process.join()
        entry = {"reason": f"the process ended with code {process.exitcode}"}
    process.kill()
    process.join()
    named: dict[str, Any] = {"class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[case.type]}
    return named | entry | {"seconds": round(time.monotonic() - start, 1)}


def _send(pipe: Connection, case: Case, dtype: str, spread: float) -> None:
    transformers.logging.set_verbosity_error()
    pipe.send(_checked(case, getattr(torch, dtype), spread))
    pipe.close()


def _checked(case: Case, dtype: torch.dtype, spread: float) -> dict[str, Any]:
    """The record of one model, or why there is none."""
    entry: dict[str, Any] = {}
    try:
        config = AutoConfig.for_model(case.type)
    except Exception:  # a default that its own class refuses
        config = None
    try:
        settings = merged(
            merged(shrunk(config, spread) if config is not None else {}, OVERRIDES.get(case.type, {})), case.variant
        )
        entry["settings"] = settings
        model = resolve(case.type, settings, False, dtype).model
        if not isinstance(model, torch.nn.Module):
            return entry | {"reason": "no module"}
        entry["parameters"] = sum(weight.numel() for weight in model.parameters())
        report = check(model).as_dict()
        report["checks"] = [
            {key: value for key, value in one.items() if value not in (None, "") and key != "unit"}
            for one in report["checks"]
        ]
        return entry | {key: report[key] for key in ("clean", "vocab_size", "length", "dtype", "rounding", "checks")}
    except InputError as error:
        return entry | {"reason": " ".join(str(error).split())}
    except Exception as error:  # of ours: to be looked into
        return entry | {"reason": f"unexpected {one_line(error)}"}


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`first` with the entries of `second`, within parts too."""
    together = {
        key: merged(first[key], value) if isinstance(first.get(key), dict) and key.endswith("_config") else value
        for key, value in second.items()
    }
    return first | together


def shrunk(config: PreTrainedConfig, spread: float = SPREAD, outermost: bool = True) -> dict[str, Any]:
    """Overrides that make a configuration small, its parts too; one layer of each kind is kept."""
    fields = {key: value for key, value in config.to_dict().items() if key not in config.sub_configs}
    if outermost:
        fields = {key: value for key, value in fields.items() if not _varies(config, key)}
    settings: dict[str, Any] = {}
    for size, listed in SMALL.items():
        for name in listed.split():
            value = fields.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > size:
                settings[name] = size
    for name, sources in DERIVED.items():
        if any(source in fields for source in sources):
            settings.pop(name, None)
    for name in KEY_HEADS:
        if isinstance(fields.get(name), int):
            heads = fields.get("num_attention_heads", 0)
            settings[name] = min(fields[name], 4 if fields[name] == heads else 2)
    for name in SPREADS:
        if isinstance(fields.get(name), float):
            settings[name] = spread
    if "vocab_size" in settings:
        for name, small in SPECIAL.items():
            value = fields.get(name)
            if max(value if isinstance(value, list) else [value or 0]) >= settings["vocab_size"]:
                settings[name] = small
    layers = next((name for name in LAYER_FIELDS if isinstance(fields.get(name), int)), None)
    if layers is not None:
        settings |= _layers_of_each_kind(fields, layers)
    for part in config.sub_configs:
        inner = getattr(config, part, None)
        if isinstance(inner, PreTrainedConfig):
            settings[part] = ({"model_type": inner.model_type} if inner.model_type else {}) | shrunk(
                inner, outermost=False
            )
    return settings


def _varies(config: PreTrainedConfig, name: str) -> bool:
    """Whether layers have values of their own, so that there is none for all and none can be set."""
    try:
        getattr(config, name, None)
    except RuntimeError:
        return True
    return False


def _layers_of_each_kind(fields: dict[str, Any], layers: str) -> dict[str, Any]:
    """The number of layers, and lists with an entry a layer cut to it, so that every combination is kept if it can."""
    count = fields[layers]
    lists = {key: value for key, value in fields.items() if isinstance(value, list) and len(value) == count > 1}
    kinds = list(zip(*(map(str, value) for value in lists.values()), strict=True))
    firsts = [index for index, kind in enumerate(kinds) if kinds.index(kind) == index][:MOST_LAYERS]
    others = [index for index in range(count) if index not in firsts]
    kept = sorted([*firsts, *others][: max(len(firsts), min(LAYERS, count))])
    return {layers: len(kept)} | {key: [value[index] for index in kept] for key, value in lists.items()}


def _counts(models: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Of types as they are by default; `cases` counts those under a second setting too."""
    default = [entry for name, entry in models.items() if " " not in name]
    checked = [entry for entry in default if "checks" in entry]
    leaks = [entry for entry in checked if any(row["verdict"] == "leak" for row in entry["checks"])]
    return {
        "types": len(default),
        "built": sum("parameters" in entry for entry in default),
        "checked": len(checked),
        "clean": sum(entry["clean"] for entry in checked),
        "leak": len(leaks),
        "differ in cache, padding or length only": sum(not entry["clean"] for entry in checked) - len(leaks),
        "cases": len(models),
    }


ONE_SHAPE = ("future", "batch", "future (training)", "batch (training)")
OTHER_SHAPES = ("row alone", "length", "cache", "padding")


def _exactness(models: dict[str, dict[str, Any]], reference: dict[str, dict[str, Any]]) -> dict[str, float | int | str]:
    """How far models move in the checks that they pass in `reference`: where nothing but rounding can be at work."""
    one_shape: list[float] = []
    others: list[tuple[float, float, str]] = []
    rounding = [entry["rounding"] for entry in models.values() if entry.get("rounding")]
    for name, entry in models.items():
        passed = {row["check"] for row in reference.get(name, {}).get("checks", []) if row["verdict"] == "ok"}
        for row in entry.get("checks", []):
            if row["check"] not in passed or not isinstance(row.get("change"), float):
                continue  # one that is infinite, for which JSON has no number, is no rounding
            if row["check"] in ONE_SHAPE:
                one_shape.append(float(row["change"]))
            elif row["check"] in OTHER_SHAPES and entry.get("rounding"):
                others.append((float(row["change"]), float(row["change"]) / entry["rounding"], name))
    defects = [
        (math.inf if row.get("change") is None else row["change"]) / entry["rounding"]
        for entry in models.values()
        for row in entry.get("checks", [])
        if row["check"] in OTHER_SHAPES and row["verdict"] in ("leak", "differs") and entry.get("rounding")
    ]
    return {
        "passes_of_one_shape": len(one_shape),
        "of_them_exactly_0": one_shape.count(0.0),
        "largest_of_one_shape": max(one_shape, default=0.0),
        "passes_of_other_shapes": len(others),
        "largest_of_other_shapes": max(others, default=(0.0, 0.0, ""))[0],
        "largest_in_parts_of_rounding": max((part for _, part, _ in others), default=0.0),
        "smallest_defect_in_parts_of_rounding": min(defects, default=0.0),
        "rounding_median": statistics.median(rounding) if rounding else 0.0,
        "rounding_largest": max(rounding, default=0.0),
        "causal_models_above_a_fixed_1e-4": ", ".join(sorted({name for change, _, name in others if change > 1e-4})),
    }


def _said(entry: dict[str, Any]) -> str:
    if "checks" not in entry:
        return f"not checked: {entry['reason']}"
    found = [f"{row['check']} {row['verdict']}" for row in entry["checks"] if row["verdict"] not in ("ok", "skipped")]
    return f"{', '.join(found) or 'clean'} ({entry['seconds']} s)"


def _cell(results: list[dict[str, Any]]) -> str:
    verdicts = {row["verdict"] for row in results}
    if "leak" in verdicts:
        return "**LEAK**"
    if "differs" in verdicts:
        return "**differs**"
    changes = [float(row["change"]) for row in results if row.get("change") is not None]
    return f"{max(changes):.0e}" if changes and max(changes) > 0 else "0" if changes else "–"


def _table(models: dict[str, dict[str, Any]]) -> str:
    """A row a model: the largest change of each check, those in training mode together."""
    rows = {name: _by_column(entry["checks"]) for name, entry in models.items() if "checks" in entry}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row if column != "training"))
    columns.append("training")
    lines = [f"| type | class | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [_cell(row.get(column, [])) for column in columns]
        lines.append(f"| {name} | {models[name]['class']} | {' | '.join(cells)} |")
    missing = [
        f"- {name} ({entry['class']}): {entry['reason']}" for name, entry in models.items() if "checks" not in entry
    ]
    return "\n".join([*lines, *(["", "Not checked:", "", *missing] if missing else [])]) + "\n"


def _by_column(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    columns: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        columns.setdefault("training" if "training" in result["check"] else result["check"], []).append(result)
    return columns


if __name__ == "__main__":
    main()
