"""The seam: every private name of another library that we rely on is where it was, and does what
it did. A failure names what has moved."""

import ast
import copy
import importlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from inspect import Parameter, getsource, signature
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
import trl
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from support.tool_model import CONVERSATIONS, tool_tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import PushInProgress
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer
from trl.trainer.utils import add_fused_lm_head

import grpo_hf
from grpo_hf import trl_seam
from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.durable_trainer import DurableTrainer
from grpo_hf.errors import ConfigError, SeamMovedError

ROWS, GROUP, WIDTH = 4, 2, 5
CONSTRUCTOR = [
    "self",
    "model",
    "reward_funcs",
    "args",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "reward_processing_classes",
    "callbacks",
    "optimizers",
    "quantization_config",
    "peft_config",
    "tools",
    "rollout_func",
    "environment_factory",
]


def first(completions, log_metric, **columns):
    log_metric("first/calls", 1.0)
    return [float(len(str(completion))) for completion in completions]


def second(completions, **columns):
    return [None, *[1.0] * (len(completions) - 1)]


@pytest.fixture(scope="module")
def trainer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> trl.GRPOTrainer:
    """TRL's own trainer after one step, with a new adapter, two rewards and chat prompts."""
    prompts = [
        [{"role": "user", "content": "Anna has 3 apples. How many?"}],
        [{"role": "user", "content": "2?"}],
    ]
    trainer = trl.GRPOTrainer(
        str(tiny_checkpoint),
        [first, second],
        trl.GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            num_generations=GROUP,
            per_device_train_batch_size=ROWS // 2,
            gradient_accumulation_steps=2,
            max_completion_length=WIDTH,
            max_steps=1,
            logging_strategy="no",
            save_strategy="no",
            reward_weights=[1.0, 0.5],
            beta=0.04,
            use_cpu=True,
            bf16=False,
            report_to="none",
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    trainer.add_callback(AfterTheStep(trainer))
    trainer.train()
    return trainer


class AfterTheStep(transformers.TrainerCallback):
    """Looks at a trainer after its step, before TRL clears the metrics that it has logged."""

    def __init__(self, trainer: trl.GRPOTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.kls_of_step = len(self.trainer._metrics["train"]["kl"])
        self.trainer.buffered = list(self.trainer._buffered_inputs)


def assert_takes(function: Callable[..., Any], expected: tuple[str, ...]) -> None:
    """The first parameters have these names, in this order, and what follows is optional."""
    parameters = signature(function).parameters
    name = f"{function.__module__}.{function.__qualname__}"
    assert tuple(parameters)[: len(expected)] == expected, (
        f"{name} has moved: its parameters are {', '.join(parameters)}; grpo-hf calls it with "
        f"{', '.join(expected)}"
    )
    required = []
    for parameter in list(parameters.values())[len(expected) :]:
        variadic = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if parameter.default is Parameter.empty and not variadic:
            required.append(parameter.name)
    assert not required, f"{name} has moved: it also requires {', '.join(required)}"


@pytest.mark.parametrize("name", trl_seam.OVERRIDDEN)
def test_what_we_override_is_there(name: str):
    method = getattr(trl.GRPOTrainer, name, None)
    assert method is not None, f"trl.GRPOTrainer.{name} has moved: there is no such method"
    assert_takes(method, trl_seam.OVERRIDDEN[name])
    own = vars(grpo_hf.GRPOTrainer) | vars(DurableTrainer)
    assert name in own, f"{name} is not overridden any more"


@pytest.mark.parametrize("address", trl_seam.CALLED)
def test_what_we_call_is_there(address: str):
    module, _, path = address.partition(":")
    try:
        function = attrgetter(path)(importlib.import_module(module))
    except (ImportError, AttributeError):
        pytest.fail(f"{address} has moved: there is no such function")
    assert_takes(function, trl_seam.CALLED[address])


@pytest.mark.parametrize("name", trl_seam.TRAINER_ATTRIBUTES)
def test_what_we_read_of_a_trainer_is_there(trainer: trl.GRPOTrainer, name: str):
    assert hasattr(trainer, name), f"the attribute {name} of trl.GRPOTrainer has moved"


def test_a_moved_signature_is_reported_by_name():
    def renamed(self, network, input_ids):
        """Stands for TRL's method after a change."""

    with pytest.raises(
        AssertionError, match=r"renamed has moved: its parameters are self, network, input_ids"
    ):
        assert_takes(renamed, ("self", "model"))
    with pytest.raises(AssertionError, match=r"renamed has moved: it also requires input_ids"):
        assert_takes(renamed, ("self", "network"))


def test_the_constructor_takes_nothing_that_we_do_not_know():
    found = list(signature(trl.GRPOTrainer.__init__).parameters)
    moved = set(found) ^ set(CONSTRUCTOR) or "the order"
    assert found == CONSTRUCTOR, f"the constructor of trl.GRPOTrainer has moved: {moved}"


def test_every_function_of_the_seam_is_tested_here():
    tree = ast.parse(getsource(trl_seam))
    tests = Path(__file__).read_text(encoding="utf-8")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert f"trl_seam.{node.name}" in tests, f"no test calls trl_seam.{node.name}"


def test_nothing_else_touches_a_private_name_of_trl(trainer: trl.GRPOTrainer):
    private = {name for name in dir(trainer) if name[0] == "_" and name[:2] != "__"}
    source = Path(grpo_hf.__file__).parent
    for file in sorted(source.rglob("*.py")):
        if file.name in ("trainer.py", "durable_trainer.py", "trl_seam.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or node.attr not in private:
                continue
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert is_own, f"{file.name}:{node.lineno} reads {node.attr}: go through trl_seam.py"


# What TRL's trainer keeps, and what its methods return


def test_metrics_are_a_list_per_name_and_mode(trainer: trl.GRPOTrainer):
    assert set(trainer._metrics) == {"train", "eval"}
    assert isinstance(trainer._metrics["train"], defaultdict)
    trainer.model.train()
    trl_seam.log_metric(trainer, "one", 1)
    trl_seam.log_metrics(trainer, {"one": 2, "two": 3})
    assert trainer._metrics["train"]["one"] == [1.0, 2.0]
    assert trainer._metrics["train"]["two"] == [3.0]
    trainer.model.eval()
    trl_seam.log_metric(trainer, "one", 4)
    assert trainer._metrics["eval"]["one"] == [4.0]
    trainer.model.train()


def test_a_kl_per_micro_batch_is_logged(trainer: trl.GRPOTrainer):
    term = trl_seam.KLTerm(trainer)
    assert trainer.kls_of_step == 2, "TRL logs another number of KLs than one per micro-batch"
    trainer._metrics["train"]["kl"] = [1.0, 2.0, 4.0]
    assert term.kl_of_step() == 3.0
    del trainer._metrics["train"]["kl"]
    term.beta = 0.5
    assert term.beta == trainer.beta == 0.5
    term.log()
    assert trainer._metrics["train"]["beta"][-1] == 0.5
    term.beta = 0.04


def test_the_spread_of_the_kl_is_logged(trainer: trl.GRPOTrainer):
    trainer.model.train()
    term, metrics = trl_seam.KLTerm(trainer), trainer._metrics["train"]
    for median, largest in ((1.0, 5.0), (2.0, 3.0)):
        term.log_spread(median, largest)
    assert metrics.pop("kl/median") == [1.0, 2.0] and metrics.pop("kl/max") == [5.0]


def test_the_log_probs_of_a_loss_are_recorded(trainer: trl.GRPOTrainer):
    term, batch = trl_seam.KLTerm(trainer), rollout(trainer)
    with term.log_probs_recorded() as recorded:
        trl_seam.loss_of(trainer, batch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    scored = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, WIDTH)
    (log_probs,) = recorded
    assert torch.equal(log_probs, scored[0]) and not log_probs.requires_grad
    assert "_get_per_token_logps_and_entropies" not in vars(trainer)
    trainer.model.eval()
    with term.log_probs_recorded() as recorded:
        trl_seam.loss_of(trainer, batch)
    assert recorded == []
    trainer.model.train()


def roll_out(trainer: trl.GRPOTrainer) -> Any:
    trainer.model.train()
    rows = [dict(trainer.train_dataset[row // GROUP]) for row in range(ROWS)]
    return trainer._generate_and_score_completions(rows)


def test_the_rewards_that_trl_normalises_are_recorded(trainer: trl.GRPOTrainer):
    with trl_seam.rewards_recorded(trainer) as returned:
        batch = roll_out(trainer)
    (rewards,) = returned
    assert rewards.shape == (ROWS, 2)
    assert rewards[0, 1].isnan() and rewards[1:, 1].tolist() == [1.0] * (ROWS - 1)
    expected = [float(len(str(text))) for text in trainer._logs["completion"]]
    assert rewards[:, 0].tolist() == expected
    assert len(batch["advantages"]) == ROWS
    assert "_calculate_rewards" not in vars(trainer)


def test_a_method_of_the_object_s_own_is_recorded_and_comes_back(trainer: trl.GRPOTrainer):
    def fixed(*_: Any) -> torch.Tensor:
        return torch.full((ROWS, 2), 5.0)

    trainer._calculate_rewards = fixed
    try:
        with trl_seam.rewards_recorded(trainer) as returned:
            roll_out(trainer)
        assert returned[0].eq(5.0).all() and trainer._calculate_rewards is fixed
    finally:
        del trainer._calculate_rewards


def test_the_table_shows_other_advantages(trainer: trl.GRPOTrainer):
    batch = rollout(trainer)
    assert list(trainer._logs["advantages"]) == batch["advantages"].tolist()
    trl_seam.show_advantages(trainer, torch.arange(ROWS).float())
    assert list(trainer._logs["advantages"]) == [0.0, 1.0, 2.0, 3.0]


def test_what_rollouts_log_can_be_forgotten(trainer: trl.GRPOTrainer):
    trainer.model.train()
    trl_seam.log_metrics(trainer, {"reward": 1.0, "cost/time": 2.0})
    metrics = trainer._metrics["train"]
    before = {name: list(values) for name, values in metrics.items()}
    table = [list(trainer._logs["completion"]), list(trainer._logs["advantages"])]
    with trl_seam.only_planned_rollout_logged(trainer, summed="cost/"):
        rollout(trainer)
        trl_seam.log_metrics(trainer, {"reward": 5.0, "cost/time": 3.0, "new": 1.0})
        tokens = metrics["num_tokens"]
    assert metrics["num_tokens"] == tokens != before["num_tokens"]
    assert metrics["cost/time"] == [5.0] and "new" not in metrics
    unchanged = before.keys() - {"num_tokens", "cost/time"}
    assert {name: metrics[name] for name in unchanged} == {n: before[n] for n in unchanged}
    assert table == [list(trainer._logs["completion"]), list(trainer._logs["advantages"])]


def test_what_a_rollout_changes_can_be_undone(trainer: trl.GRPOTrainer):
    trainer.model.train()
    metrics = trainer._metrics["train"]
    go_back = trl_seam.place_between_steps(trainer)
    before = (dict(metrics), trainer._step, trainer.state.num_input_tokens_seen)
    before = copy.deepcopy(before)
    rollout(trainer)
    trainer._step += 1
    trl_seam.log_metric(trainer, "new", 1.0)
    assert trainer.state.num_input_tokens_seen != before[2]
    go_back()
    assert (dict(metrics), trainer._step, trainer.state.num_input_tokens_seen) == before


def test_tokens_of_prompts_and_of_what_follows_them(trainer: trl.GRPOTrainer):
    assert trl_seam.tokenizer_of(trainer) is trainer.processing_class
    prompts = trainer.train_dataset["prompt"]
    template = trainer.processing_class.apply_chat_template
    rendered = [template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
    assert trl_seam.prompt_ids_of(trainer, prompts) == rendered
    asked = [rendered[0]] * 3
    found = trl_seam.continue_tokens(trainer, asked, max_new_tokens=2, num_generations=3)
    assert [len(ids) <= 2 for ids in found] == [True] * 3
    assert trainer.generation_config.max_new_tokens == WIDTH
    policy = trl_seam.policy_of(trainer)
    assert policy.tokenize(prompts) == rendered
    assert len(policy.sample(asked, 2, 3)) == 3
    assert policy.context().group_size == GROUP


def test_other_rewards_are_called_for_a_block(trainer: trl.GRPOTrainer):
    own = trainer.reward_funcs
    with trl_seam.rewards_replaced(trainer, [lambda **_: [7.0] * ROWS, second]):
        rollout(trainer)
    assert list(trainer._logs["rewards"]["first"]) == [7.0] * ROWS
    assert trainer.reward_funcs is own


def test_another_rollout_function_is_called_for_a_block(trainer: trl.GRPOTrainer):
    own = trainer.rollout_func
    completions = [[5, 6]] * ROWS

    def written(prompts: list[str], _trainer: Any) -> dict[str, Any]:
        prompt_ids = [[7]] * len(prompts)
        return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}

    with trl_seam.rollout_function_replaced(trainer, written):
        assert trainer._generate(["1 + 1 = "] * ROWS)[1] == completions
    assert trainer.rollout_func is own


def test_the_loss_of_some_rows_is_that_of_a_step_of_one_micro_batch(trainer: trl.GRPOTrainer):
    batch = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer.compute_loss(trainer.model, batch)
    # The last window of an epoch may have left another number.
    trainer.current_gradient_accumulation_steps = 3
    assert torch.equal(trl_seam.loss_of(trainer, batch), expected)


def rollout(trainer: trl.GRPOTrainer) -> Any:
    """A rollout, held against what our overrides take and return."""
    trainer.model.train()
    seen: dict[str, Any] = {}

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(trl.GRPOTrainer, name)

        def call(*positional: Any, **named: Any) -> Any:
            seen[name] = (positional, method(trainer, *positional, **named))
            return seen[name][1]

        return call

    watch = ("_generate", "_calculate_rewards", "_generate_single_turn")
    for name in watch:
        setattr(trainer, name, watched(name))
    rows = [dict(trainer.train_dataset[row // GROUP]) for row in range(ROWS)]
    try:
        batch = trainer._generate_and_score_completions(rows)
    finally:
        for name in watch:
            delattr(trainer, name)
    assert set(seen) == set(watch), "TRL's rollout takes another way"
    asked, generated = seen["_generate"]
    assert asked[0] == [row["prompt"] for row in rows]
    assert [len(ids) for ids in generated[1]] == batch["completion_mask"].sum(1).tolist()
    assert [completion[0]["role"] for completion in generated[3]] == ["assistant"] * ROWS
    scored, rewards = seen["_calculate_rewards"]
    assert scored[0] is rows and scored[2] is generated[3] and scored[3] is generated[1]
    assert rewards.shape == (ROWS, 2)
    assert seen["_generate_single_turn"][1][0] == generated[1]
    return batch


def test_a_batch_has_the_keys_that_we_name(trainer: trl.GRPOTrainer):
    batch = rollout(trainer)
    known = trl_seam.Batch.__annotations__.keys()
    assert batch.keys() <= known, f"a batch has more: {batch.keys() - known}"
    assert batch["advantages"].shape == (ROWS,)
    assert batch["prompt_ids"].shape == batch["prompt_mask"].shape
    assert batch["completion_ids"].shape == batch["completion_mask"].shape
    assert batch["completion_mask"].sum() == batch["num_items_in_batch"]


def test_micro_batches_are_buffered_and_counted(trainer: trl.GRPOTrainer):
    assert trainer._step == 2, "TRL counts something else than micro-batches in _step"
    assert len(trainer.buffered) == 2
    plan = trl_seam.refill_plan(trainer)
    assert plan.seed == f"{trainer.args.seed}/(1, 0)" and plan.data is trainer.train_dataset
    loss = trainer._compute_loss(trainer.model, trainer.buffered[0])
    assert loss.shape == () and loss.requires_grad


def test_log_probs_are_those_of_the_last_tokens(trainer: trl.GRPOTrainer):
    """log softmax of the logits, divided by the temperature, at the labels: (B, tokens)."""
    ids = torch.arange(20, 32).view(2, 6)
    trainer.model.eval()
    with torch.no_grad():
        found = trl_seam.policy_state(trainer_like(trainer), None).log_probs(
            trainer.model, ids, torch.ones_like(ids), 4
        )
        logits = trainer.model(ids).logits / trainer.temperature
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -4:]
    torch.testing.assert_close(found, expected)


def trainer_like(trainer: trl.GRPOTrainer) -> trl.GRPOTrainer:
    """TRL's trainer with the one attribute that ours adds."""
    trainer.continues_adapter = False
    return trainer


def test_what_a_trainer_is(trainer: trl.GRPOTrainer):
    traits = trl_seam.traits_of(trainer)
    assert vars(traits) == dict.fromkeys(vars(traits), False)
    assert trl_seam.samples_with_generate(trainer)
    context = trl_seam.context_of(trainer)
    assert (context.rank, context.world, context.step) == (0, 1, 1)
    facts = trl_seam.card_facts(trainer, "some data")
    assert facts.rewards == [("first", 1.0), ("second", 0.5)]
    assert facts.has_adapter and facts.adapter.r == 2 and facts.steps == 1
    assert isinstance(trainer.model, PeftModel) and list(trainer.model.peft_config) == ["default"]
    assert isinstance(trainer.accelerator, Accelerator)
    assert trl_seam.refill_plan(trainer).pad_token_id is not None
    assert trl_seam.policy_of(trainer).max_completion_length == WIDTH
    assert trl_seam.KLTerm(trainer).beta == trainer.args.beta == 0.04


def test_whose_sampler_draws_the_training_rows():
    class Own(grpo_hf.GRPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return super()._get_train_sampler(dataset)

    class OwnLoader(grpo_hf.GRPOTrainer):
        def get_train_dataloader(self):
            return super().get_train_dataloader()

    rows = Dataset.from_dict({"prompt": ["a"]})
    stream = rows.to_iterable_dataset()
    for data in (rows, stream, None):
        call = {"train_dataset": data}
        assert trl_seam.data_drawn_by_trl(call, grpo_hf.GRPOTrainer) is data
        for own in (Own, OwnLoader):
            drawn = trl_seam.data_drawn_by_trl(call, own)
            assert drawn is (None if data is rows else data)


@pytest.mark.parametrize(
    ("attribute", "value", "trait"),
    [
        ("use_vllm", True, "samples_together"),
        ("is_fsdp_enabled", True, "sharded_weights"),
        ("is_deepspeed_enabled", True, "sharded_weights"),
        ("tools", [len], "has_tools"),
        ("environment_factories", {None: dict}, "has_tools"),
        ("environment_factories", {None: dict}, "has_environments"),
        ("rollout_func", len, "has_rollout_function"),
        ("_is_vlm", True, "reads_images"),
        ("_entropy_bonus_enabled", True, "entropy_in_loss"),
    ],
)
def test_traits_are_read_from_what_trl_keeps(
    trainer: trl.GRPOTrainer,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
    value: Any,
    trait: str,
):
    assert getattr(trainer, attribute) in (False, None, [])  # TRL's names for what is left out
    monkeypatch.setattr(trainer, attribute, value)
    assert getattr(trl_seam.traits_of(trainer), trait) is True


def test_one_process_samples_by_vllm_where_its_sampler_can(
    trainer: trl.GRPOTrainer, monkeypatch: pytest.MonkeyPatch
):
    def continues(prompt_ids: Any, tokens: int, copies: int) -> Any:
        return [[tokens, copies] for _ in prompt_ids]

    monkeypatch.setattr(trainer, "use_vllm", True)
    sampler = SimpleNamespace(continue_tokens=None)
    monkeypatch.setattr(trainer, "vllm_generation", sampler, raising=False)
    assert trl_seam._sample_alone(trainer) is None
    assert trl_seam.traits_of(trainer).samples_together
    sampler.continue_tokens = continues
    assert not trl_seam.traits_of(trainer).samples_together
    assert trl_seam.policy_of(trainer).sample([[5], [5]], 3, 2) == [[3, 2]] * 2


def test_the_parts_of_vllm_are_found_where_they_are_replaced():
    """What TRL's sampler is made of, and by which names it is asked."""
    parts = {name: object() for name in ("LLM", "VLLMClient", "is_vllm_available")}
    with trl_seam.vllm_parts(**parts):
        for name, part in parts.items():
            assert getattr(vllm_generation, name) is part
    assert vllm_generation.is_vllm_available is not parts["is_vllm_available"]
    makes = getsource(vllm_generation.VLLMGeneration._init_vllm)
    for name in ("self.llm = LLM(", "self.vllm_client = VLLMClient(", "is_vllm_available()"):
        assert name in makes
    generates = getsource(vllm_generation.VLLMGeneration.generate)
    for name in (
        "self.sync_weights()",
        "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)",
        "self.llm.sleep(level=2)",
        "self.vllm_client.generate(",
    ):
        assert name in generates
    sends = getsource(vllm_generation.VLLMGeneration._iter_named_params)
    for name in ("model.merge_adapter()", "model.named_parameters()", "model.unmerge_adapter()"):
        assert name in sends
    sampler = getsource(trl.GRPOTrainer.__init__).partition("VLLMGeneration(")[2]
    for name in ("model", "accelerator", "mode", "server_base_url", "tensor_parallel_size"):
        assert f"{name}=" in sampler


def test_a_sampler_is_told_that_it_is_awake():
    sampler = SimpleNamespace(_llm_weights_sleeping=True)
    trl_seam.weights_are_awake(sampler)
    assert sampler._llm_weights_sleeping is False
    assert "_llm_weights_sleeping" in getsource(vllm_generation.VLLMGeneration.generate)


def test_a_checkpoint_is_written_when_asked(trainer: trl.GRPOTrainer):
    trl_seam.save_checkpoint(trainer)
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    assert (folder / "adapter_model.safetensors").is_file()
    assert (folder / "trainer_state.json").is_file()


def test_a_model_is_saved_without_a_push(trainer: trl.GRPOTrainer, monkeypatch: Any, tmp_path):
    monkeypatch.setattr(trainer.args, "push_to_hub", True)
    monkeypatch.setattr(trainer.args, "output_dir", str(tmp_path))
    pushes: list[Any] = []
    monkeypatch.setattr(trainer, "push_to_hub", lambda **named: pushes.append(named))
    trl_seam.save_model_here(trainer)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert pushes == []
    trainer.save_model()
    assert len(pushes) == 1, "this is why there is a function for it"


def test_pushes_under_way_are_waited_for(trainer: trl.GRPOTrainer, monkeypatch: Any):
    running = PushInProgress([Future()])
    monkeypatch.setattr(trainer, "push_in_progress", running, raising=False)
    monkeypatch.setattr(running, "wait_until_done", lambda: running.jobs[0].set_result(None))
    trl_seam.finish_pushes(trainer)
    assert running.is_done()


def test_transformers_uploads_by_another_client_for_a_block():
    own = transformers.trainer.hf_api
    with trl_seam.uploads_by("client"):
        assert transformers.trainer.hf_api() == "client"
    assert transformers.trainer.hf_api is own
    # They are called by this name, which is looked up in the module.
    for method in ("push_to_hub", "_push_from_checkpoint"):
        assert "hf_api().upload_folder(" in getsource(getattr(transformers.Trainer, method))


@pytest.mark.parametrize("name", ["use_adapter", "create_model_from_path"])
def test_trl_finds_another_function_for_a_block(name: str):
    own = getattr(grpo_trainer, name)
    with trl_seam.replaced_in_trl(name, len):
        assert trl_seam.found_in_trl(name) is getattr(grpo_trainer, name) is len
    assert getattr(grpo_trainer, name) is own
    # Both are called by their plain name, which is looked up in the module.
    assert f" {name}(" in getsource(grpo_trainer.GRPOTrainer)


def test_no_adapter_is_the_base(trainer: trl.GRPOTrainer):
    model = trainer.model.eval()
    ids = torch.arange(20, 32).unsqueeze(0)
    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
    before = weight.detach().clone()
    with torch.no_grad():
        with trl_seam.active_adapter(model, None):
            base = model(ids).logits
        weight.fill_(0.1)
        adapted = model(ids).logits
        with trl_seam.active_adapter(model, None):
            assert torch.equal(model(ids).logits, base)
        assert torch.equal(model(ids).logits, adapted)
        assert not torch.equal(adapted, base)
        weight.copy_(before)


# Models, layers and kernels


@pytest.fixture
def model(tiny_checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


def test_the_fused_head_scores_labels_that_are_shifted(model: Any):
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    trl_seam.check_fused_head(model.forward)
    ids = torch.arange(20, 32)[None]
    with torch.no_grad():
        found = trl_seam.fused_log_probs(model.forward, ids, input_ids=ids)
        expected = (model(ids).logits / 0.7).log_softmax(-1)
    chosen = expected.gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(found.log_probs.view(chosen.shape), chosen)
    entropy = -(expected.exp() * expected).sum(-1)
    torch.testing.assert_close(found.entropy.view(entropy.shape), entropy)


def test_a_head_that_takes_other_words_is_named(model: Any):
    with pytest.raises(SeamMovedError, match="takes no 'fused_lm_head'"):
        trl_seam.check_fused_head(lambda *positional, shift_labels=None: None)


def test_names_of_transformers(model: Any, tiny_checkpoint: Path):
    assert trl_seam.attention_implementation(model.config) == "sdpa"
    assert trl_seam.name_or_path(model.config) == str(tiny_checkpoint)
    given = transformers.GenerationConfig(max_new_tokens=3)
    whole = trl_seam.whole_generation_config(model, given)
    assert whole.eos_token_id == model.generation_config.eos_token_id
    caches = []

    def loop(model: Any, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        caches.append(inputs[trl_seam.cache_argument(inputs)])
        return input_ids

    ids = torch.arange(20, 24)[None]
    assert torch.equal(model.generate(ids, generation_config=given, custom_generate=loop), ids)
    assert isinstance(caches[0], transformers.DynamicCache)


def test_a_forward_hook_is_there_once(model: Any):
    calls = []

    def hook(module: Any, positional: Any, named: dict[str, Any], output: Any) -> None:
        calls.append(named["use_cache"])

    trl_seam.add_forward_hook_once(model, hook)
    trl_seam.add_forward_hook_once(model, hook)
    model(input_ids=torch.arange(3)[None], use_cache=False)
    assert calls == [False]


@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_are_found(model: Any, kind: str):
    layer = model.model.layers[0].mlp

    def hook(*given: Any) -> None:
        pass

    handle = getattr(layer, f"register_{kind}")(hook)
    assert trl_seam.own_hooks(layer) == [hook]
    handle.remove()
    assert trl_seam.own_hooks(layer) == []


@pytest.mark.parametrize("name", ["_compute_loss", "compute_loss", "training_step", "log"])
def test_another_loss_is_found(trainer: Any, name: str):
    def other(*positional: Any, **named: Any) -> None:
        pass

    class Subclass(trl.GRPOTrainer):
        pass

    assert not trl_seam.has_other_loss(trainer, trl.GRPOTrainer)
    setattr(Subclass, name, other)
    copied = copy.copy(trainer)
    copied.__class__ = Subclass
    assert trl_seam.has_other_loss(copied, trl.GRPOTrainer) == (name != "log")
    patched = copy.copy(trainer)
    setattr(patched, name, other)
    assert trl_seam.has_other_loss(patched, trl.GRPOTrainer) == (name != "log")


def test_actions_of_trl_s_parser():
    actions = trl_seam.parser_actions(trl.TrlParser([trl.ModelConfig]))
    by_name = {action.dest: action for action in actions}
    assert by_name["lora_r"].type is int and by_name["use_peft"].default is False


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, True), ({"use_dora": True}, False), ({"lora_bias": True}, False)],
)
def test_layers_that_are_two_products(model: Any, settings: dict[str, bool], expected: bool):
    lora = LoraConfig(r=2, target_modules=["q_proj"], **settings)
    adapted = get_peft_model(model, lora)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert trl_seam.lora_is_two_products(layer, "default") is expected
    with adapted.disable_adapter():
        assert not trl_seam.lora_is_two_products(layer, "default")
    if expected:
        adapted.merge_adapter()
        assert not trl_seam.lora_is_two_products(layer, "default")


def test_four_bit_layers_say_whether_they_pack():
    layer = bitsandbytes.nn.Linear4bit(64, 64)
    layer.weight = bitsandbytes.nn.Params4bit(torch.randn(64, 64)).to("cpu")
    assert trl_seam.layers_that_pack(torch.nn.Sequential(layer)) == [layer]
    trl_seam.never_pack(layer)
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(2, 64))
    assert not trl_seam.is_packed(layer)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("lfm2", {"causal_conv1d_fn"}),
        ("qwen3_next", {"causal_conv1d_fn", "torch_chunk_gated_delta_rule"}),
        (
            "bamba",
            {"causal_conv1d_fn", "mamba2_chunk_scan", "mamba2_split_conv1d_scan_combined"},
        ),
    ],
)
def test_functions_that_carry_state_are_there(architecture: str, names: set[str]):
    file = importlib.import_module(f"transformers.models.{architecture}.modeling_{architecture}")
    for name in names:
        assert name in trl_seam.STATE_FUNCTIONS
        assert hasattr(file, name), f"transformers has moved {name} of {architecture}"
        parameters = signature(getattr(file, name)).parameters.values()
        assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters), name


def test_files_of_layers(model: Any):
    names = [file.__name__ for file in trl_seam.files_of_layers(model)]
    assert "transformers.models.llama.modeling_llama" in names


def test_a_forward_is_found_below_the_autocast_of_a_run(make_trainer: Any):
    trainer = make_trainer(beta=0.0, bf16=True, max_steps=1)
    own = trainer.model.forward
    assert trl_seam.forward_before_autocast(trainer.model) == own
    trainer.train()
    assert trainer.model.forward != own
    assert trl_seam.forward_before_autocast(trainer.model) == own


def test_a_checkpoint_is_written_elsewhere_and_named_later(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, save_total_limit=1)
    trainer.train()
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    trainer.state.best_global_step = 1
    trainer.args.save_strategy = "best"
    with trl_seam.checkpoint_written_in(trainer, elsewhere, run):
        transformers.Trainer._save_checkpoint(trainer, trainer.model, trial=None)
    assert (elsewhere / "checkpoint-1/trainer_state.json").is_file()
    assert trainer.state.best_model_checkpoint == str(run / "checkpoint-1")
    assert trl_seam.load_finished(trainer, elsewhere / "checkpoint-1").global_step == 1


def test_calls_of_tools_are_read_and_their_turns_have_tokens():
    tokenizer = tool_tokenizer()
    (question, call, result, answer) = CONVERSATIONS[0]
    assert trl_seam.prepare_tool_calls(tokenizer) is None
    whole = tokenizer.apply_chat_template([question, call, result, answer], return_dict=False)
    before = tokenizer.apply_chat_template(
        [question], add_generation_prompt=True, return_dict=False
    )
    called = tokenizer.apply_chat_template([question, call], return_dict=False)
    written = called[len(before) :]
    assert trl_seam.read_answer(tokenizer, written, before, [])["tool_calls"] == call["tool_calls"]
    # The result, and the head of the turn in which the model goes on.
    turn = trl_seam.tool_turn_ids(tokenizer, [result], {})
    assert whole[: len(called) + len(turn)] == called + turn
    with pytest.raises(ConfigError, match="no turns for calls of tools"):
        trl_seam.prepare_tool_calls(tiny_tokenizer())


def test_a_trainer_goes_on_within_a_rollout(make_trainer):
    trainer, other = (make_trainer(num_iterations=2) for _ in range(2))
    trainer.train()
    trainer._step, trainer._metrics["train"]["kl"] = 3, [0.5]
    trainer._tr_loss = torch.tensor(2.0)
    window = trl_seam.window_of(trainer)
    assert window["rollout"] is trainer._buffered_inputs
    trl_seam.restore_window(other, window)
    assert (other._step, other._metrics["train"]["kl"], other._tr_loss) == (3, [0.5], 2.0)
    assert other._globalstep_last_logged == trainer._globalstep_last_logged
    trainer._step = 4
    assert trl_seam.window_of(trainer)["rollout"] is None
