"""Random settings of a training run, one set for each integer seed.

Everything that a user may combine is drawn: the kind of model, the adapter, precision, loss,
geometry, prompts, rewards, and how completions are sampled. A combination that TRL refuses is no
loss: then there is nothing to compare.
"""

from dataclasses import dataclass, fields
from pprint import pformat
from random import Random
from typing import Any

from .tiny_architectures import ARCHITECTURES, draw_options

LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "luspo", "sapo", "vespo")
# (completions per prompt, rows per micro-batch, accumulated micro-batches, micro-batches per
# rollout or None, iterations)
GEOMETRIES = (
    (2, 4, 1, None, 1),
    (4, 8, 1, None, 1),
    (4, 2, 4, None, 1),
    (3, 2, 3, None, 1),
    (3, 6, 2, None, 1),
    (4, 4, 2, None, 1),
    (2, 2, 2, 4, 1),
    (4, 4, 1, 2, 1),
    (2, 4, 2, 1, 1),
    (2, 2, 3, 2, 1),
    (4, 2, 2, 6, 1),
    (2, 4, 1, None, 2),
    (4, 4, 2, None, 3),
    (2, 2, 2, 4, 2),
)


@dataclass(frozen=True)
class Case:
    """The settings of one run, for TRL's trainer and for ours.

    `training` goes to both configurations, `ours` to ours alone. Where `trl_config` is set, ours
    gets TRL's configuration.
    """

    seed: int
    architecture: str
    options: dict[str, Any]
    model: dict[str, Any]
    adapter: dict[str, Any] | None
    training: dict[str, Any]
    ours: dict[str, Any]
    trl_config: bool
    completions: str
    data: dict[str, Any]
    rewards: list[str]

    def __str__(self) -> str:
        """Return Python code that makes this case again."""
        lines = []
        for field in fields(self):
            lines.append(f"    {field.name}={pformat(getattr(self, field.name), width=90)},")
        return "Case(\n" + "\n".join(lines) + "\n)"


def case_of(seed: int, architecture: str | None = None) -> Case:
    """Return the case of a seed, of one kind of model if that is given."""
    random = Random(f"grpo_hf/{seed}")
    # The seeds go round the kinds, so that 200 of them meet each kind at least twice.
    kinds = sorted(ARCHITECTURES)
    architecture = architecture or kinds[seed % len(kinds)]
    options = draw_options(architecture, random)
    completions = random.choice(["drawn", "drawn", "drawn", "function", "greedy", "greedy"])
    half = random.random() < 0.25
    training = _geometry(random) | _loss(random, "num_experts_per_tok" in options)
    training |= _sampling(random) | _computing(random, half)
    case = {
        "seed": seed,
        "architecture": architecture,
        "options": options,
        "model": _model(random, half),
        "adapter": _adapter(random),
        "training": training,
        "ours": _ours(random),
        "trl_config": random.random() < 0.3,
        "completions": completions,
        "data": _data(random),
        "rewards": _rewards(random, training),
    }
    _fit(random, case)
    return Case(**case)


def _model(random: Random, half: bool) -> dict[str, Any]:
    return {
        # With `bf16`, the weights of half of the cases are float32 under autocast.
        "dtype": random.choice(["bfloat16", "float32"]) if half else "float32",
        # None is the model's own choice.
        "attention": random.choice([None, None, None, None, "eager"]),
        # Beside the tokenizer's: tokens that end a text, so that rows end at different places.
        "ends": random.choice([0, 0, 40, 120]),
        "by_name": random.random() < 0.2,
        "frozen": random.random() < 0.1,
    }


def _adapter(random: Random) -> dict[str, Any] | None:
    kind = random.choices(["none", "Lora", "other"], weights=[3, 9, 2])[0]
    if kind == "none":
        return None
    given = {"name": "default", "as_model": random.random() < 0.3}
    if given["as_model"]:
        given["name"] = random.choice(["default", "default", "policy"])
    if kind == "other":
        kind = random.choice(
            ["IA3", "LoHa", "LoKr", "OFT", "Vera", "PromptTuning", "PrefixTuning", "LNTuning"]
        )
        return given | {"kind": kind, "settings": {}}
    settings: dict[str, Any] = {
        "r": random.choice([1, 2, 4, 8]),
        "lora_alpha": random.choice([1, 8, 16]),
        "target_modules": random.choice(["all-linear", "all-linear", "some"]),
    }
    for name, values, share in (
        ("use_dora", (True,), 0.1),
        ("use_rslora", (True,), 0.15),
        ("lora_bias", (True,), 0.1),
        ("bias", ("all", "lora_only"), 0.1),
        ("modules_to_save", ("head", "embeddings", "norm"), 0.12),
        ("trainable_token_indices", ([3, 4, 50],), 0.08),
        ("target_modules", ("embeddings", "experts"), 0.15),
        ("init_lora_weights", ("gaussian", "orthogonal", "pissa", False), 0.12),
        ("layers_to_transform", ([0, 2],), 0.08),
        ("lora_dropout", (0.3,), 0.1),
        ("alora_invocation_tokens", ([7],), 0.05),
        ("layer_replication", ([[0, 2], [1, 4]],), 0.04),
        ("rank_pattern", ({".*": 3},), 0.05),
    ):
        if random.random() < share:
            settings[name] = random.choice(values)
    return given | {"kind": "Lora", "settings": settings}


def _geometry(random: Random) -> dict[str, Any]:
    group, rows, accumulation, steps, iterations = random.choice(GEOMETRIES)
    geometry = {
        "num_generations": group,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": steps,
        "num_iterations": iterations,
        "max_steps": random.choice([2, 3]),
        "pad_to_multiple_of": random.choice([None, None, None, 8]),
    }
    if random.random() < 0.12:
        geometry |= {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": group * 2,
            "eval_on_start": random.random() < 0.5,
        }
    return geometry


def _loss(random: Random, routed: bool) -> dict[str, Any]:
    loss = {
        "loss_type": random.choice(LOSSES),
        "beta": random.choice([0.0, 0.0, 0.04, 0.5]),
        "use_bias_correction_kl": random.random() < 0.5,
        "epsilon": random.choice([0.2, 0.2, 0.01]),
        "importance_sampling_level": random.choice(["token", "token", "sequence"]),
        "scale_rewards": random.choice(["group", "group", "batch", "none"]),
        "mask_truncated_completions": random.random() < 0.2,
    }
    for name, values, share in (
        ("epsilon_high", (0.28, 3.0), 0.3),
        ("delta", (1.5,), 0.15),
        # With a round number the threshold may be the entropy of a token itself, and rounding would
        # decide whether that token counts.
        ("top_entropy_quantile", (0.2137, 0.6837), 0.15),
        ("entropy_coef", (0.05,), 0.12),
        ("use_adaptive_entropy", (True,), 0.06),
        ("off_policy_mask_threshold", (0.001, 0.5), 0.1),
        ("sapo_temperature_neg", (2.0,), 0.2),
        ("vespo_k_pos", (1.0,), 0.2),
        ("multi_objective_aggregation", ("normalize_then_sum",), 0.2),
        ("router_aux_loss_coef", (0.05,), 0.15 if routed else 0.0),
    ):
        if random.random() < share:
            loss[name] = random.choice(values)
    if routed and "router_aux_loss_coef" not in loss:
        # TRL's default balances the experts; without it updates of such models can be packed.
        loss["router_aux_loss_coef"] = random.choice([0.0, 0.0, 0.001])
    return loss


def _fit(random: Random, case: dict[str, Any]) -> None:
    """Draw what goes with other settings alone, and leave out what TRL refuses."""
    training, adapter = case["training"], case["adapter"]
    if adapter is None and training["beta"] and random.random() < 0.15:
        training |= {"sync_ref_model": True, "ref_model_sync_steps": 1}
        training["ref_model_mixup_alpha"] = 0.5
    if adapter is None:
        return
    if adapter["name"] != "default" and random.random() < 0.9:
        # TRL looks for an adapter called "default" where there is a KL term.
        training["beta"] = 0.0
    settings = adapter["settings"]
    if "lora_dropout" in settings:
        # A dropout that is on draws other numbers for a packed row.
        training["disable_dropout"] = True
    if "layers_to_transform" in settings and settings["target_modules"] == "all-linear":
        settings["target_modules"] = "some"
    if settings.get("init_lora_weights") == "orthogonal" and settings["r"] == 1:
        settings["r"] = 2
    if settings.get("target_modules") in ("embeddings", "experts"):
        for name in ("use_dora", "lora_bias", "alora_invocation_tokens", "init_lora_weights"):
            settings.pop(name, None)
    routed = "num_experts_per_tok" in case["options"]
    if routed or settings.get("target_modules") == "experts":
        # PEFT adapts experts as parameters, all of them, and in the plain way only.
        for name in ("use_dora", "lora_bias", "alora_invocation_tokens", "lora_dropout"):
            settings.pop(name, None)
        if settings.get("target_modules") == "some":
            settings["target_modules"] = "all-linear"
            settings.pop("layers_to_transform", None)
    if settings.get("lora_bias") or settings.get("alora_invocation_tokens"):
        settings.pop("init_lora_weights", None)
        settings.pop("use_dora", None)


# How the greedy texts are decoded.
_DECODING: tuple[dict[str, Any], ...] = (
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 3},
    {"min_length": 9},
    {"suppress_tokens": [5, 6, 7, 8, 9, 10]},
    {"begin_suppress_tokens": list(range(100, 300))},
    {"bad_words_ids": [[11], [12, 13]]},
    {"forced_eos_token_id": 1},
    {"exponential_decay_length_penalty": [1, 1.5]},
    {"sequence_bias": [[[20], 3.0], [[21, 22], -3.0]]},
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 2},
    {"guidance_scale": 1.5},
    {"num_beams": 2},
    {"num_return_sequences": 1},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"cache_implementation": "dynamic"},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "temperature": 1e-5},
    {"remove_invalid_values": True},
    {"renormalize_logits": True},
    {"max_time": 1000.0},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
    {"eos_token_id": [1, 30, 31, 32, 33, 34, 35, 36, 37, 38]},
    {"output_scores": True, "return_dict_in_generate": True},
    {"pad_token_id": 2},
)


def _sampling(random: Random) -> dict[str, Any]:
    decoding: dict[str, Any] = {"do_sample": False}
    for _ in range(random.choice([0, 0, 1, 1, 2])):
        decoding |= random.choice(_DECODING)
    if "num_beams" in decoding:
        # Sampled beams are random, whatever is sampled from.
        decoding["do_sample"] = False
    return {
        "max_completion_length": random.choice([4, 7, 12]),
        "temperature": random.choice([1.0, 1.0, 0.6, 1.5]),
        "generation_kwargs": decoding,
    }


def _computing(random: Random, half: bool) -> dict[str, Any]:
    computing = {
        "bf16": half,
        "gradient_checkpointing": random.random() < 0.3,
        "learning_rate": random.choice([0.05, 0.2]),
        "max_grad_norm": random.choice([1.0, 1.0, 0.3]),
        "weight_decay": random.choice([0.0, 0.0, 0.1]),
        "disable_dropout": random.random() < 0.5,
    }
    if random.random() < 0.06:
        computing["cast_lm_head_to_fp32"] = True
    return computing


def _ours(random: Random) -> dict[str, Any]:
    """Return settings of ours; by default every way of ours is on."""
    ours = {}
    for name in ("packed_update", "grouped_rollout", "early_rewards"):
        if random.random() < 0.08:
            ours[name] = False
    return ours


def _data(random: Random) -> dict[str, Any]:
    return {
        "rows": random.choice([3, 4, 8, 8, 24, 24]),
        "longest": random.choice([1, 8, 20]),
        "chat": random.random() < 0.25,
        # Prompts that occur more than once in a batch, and prompts with a common beginning.
        "repeated": random.random() < 0.2,
        "even": False,
        "streamed": random.random() < 0.08,
    }


def _rewards(random: Random, training: dict[str, Any]) -> list[str]:
    names = ["tokens", "coarse", "text", "sometimes_none", "constant", "by_row", "asynchronous"]
    rewards = random.sample(names, k=random.choice([1, 1, 2, 3]))
    if len(rewards) > 1 and random.random() < 0.5:
        training["reward_weights"] = [random.choice([0.5, 1.0, 2.0]) for _ in rewards]
    if random.random() < 0.04:
        rewards.append("compares_the_group")
        training.pop("reward_weights", None)
    return rewards
