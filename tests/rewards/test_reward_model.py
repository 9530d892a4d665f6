import math
import random
from operator import add

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from grpo_hf.demo.tiny_model import tiny_tokenizer
from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards import reward_model as module
from grpo_hf.rewards.reward_model import reward_model
from grpo_hf.scoring.registry import load_reward

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BERT = LLAMA | {"max_position_embeddings": 64}
PROMPTS = [
    "6 * 7?",
    "How many apples are left of 12, if 5 are eaten?",
    "1 + 1 = ",
    "",
    "Tom has 3 boxes.",
] * 3
COMPLETIONS = [" 42", " She has 7.\n#### 7", "", "It is 9", " " + "and so on " * 9] * 3


def save(folder, tokenizer, *, kind=LlamaForSequenceClassification, config=None, **settings):
    """Save a random reward model whose scores differ, and return the folder's name."""
    torch.manual_seed(0)
    make = BertConfig if kind is BertForSequenceClassification else LlamaConfig
    model = kind(
        make(vocab_size=len(tokenizer), **({"num_labels": 1} | (config or LLAMA) | settings))
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("llama")
    return save(folder, tokenizer, pad_token_id=tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def llama_without_padding(tmp_path_factory, tokenizer):
    """Save a model that has no padding token and whose tokenizer pads with the last token.

    Many decoders are like that.
    """
    other = tiny_tokenizer()
    other.pad_token = other.eos_token
    return save(tmp_path_factory.mktemp("llama_without_padding"), other, pad_token_id=None)


@pytest.fixture(scope="module")
def llama_padded_with_its_end(tmp_path_factory, tokenizer):
    return save(
        tmp_path_factory.mktemp("llama_eos"), tokenizer, pad_token_id=tokenizer.eos_token_id
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("bert")
    return save(folder, tokenizer, kind=BertForSequenceClassification, config=BERT, pad_token_id=3)


def messages(texts, role):
    return [[{"role": role, "content": text}] for text in texts]


def one_at_a_time(model, token_ids):
    """Return the scores without batches, padding or an attention mask."""
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits.item() for ids in token_ids]


def direct(folder, prompts, completions):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_ids = tokenizer(list(map(add, prompts, completions))).input_ids
    return one_at_a_time(AutoModelForSequenceClassification.from_pretrained(folder), token_ids)


@pytest.mark.parametrize(
    "kind", ["llama", "llama_without_padding", "llama_padded_with_its_end", "bert"]
)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equals_one_row_at_a_time(request, kind, batch_size):
    folder = request.getfixturevalue(kind)
    rewards = reward_model(COMPLETIONS, PROMPTS, model=folder, batch_size=batch_size)
    expected = direct(folder, PROMPTS, COMPLETIONS)
    assert rewards == pytest.approx(expected, abs=1e-5)
    # If the scores were all alike, equality would mean little.
    assert len({round(reward, 3) for reward in rewards}) == 5


@pytest.mark.parametrize("kind", ["llama", "llama_without_padding", "llama_padded_with_its_end"])
def test_messages_through_its_own_chat_template(request, kind):
    folder = request.getfixturevalue(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = messages(PROMPTS, "user")
    completions = messages(COMPLETIONS, "assistant")
    token_ids = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
        assert text.endswith("<|end|>")
        token_ids.append(tokenizer(text, add_special_tokens=False).input_ids)
    expected = one_at_a_time(AutoModelForSequenceClassification.from_pretrained(folder), token_ids)
    for batch_size in (1, 8):
        rewards = reward_model(completions, prompts, model=folder, batch_size=batch_size)
        assert rewards == pytest.approx(expected, abs=1e-5)


def test_a_row_does_not_depend_on_its_neighbours(llama_without_padding):
    together = reward_model(COMPLETIONS, PROMPTS, model=llama_without_padding)
    for row in range(5):
        alone = reward_model([COMPLETIONS[row]], [PROMPTS[row]], model=llama_without_padding)
        assert alone == pytest.approx([together[row]], abs=1e-5)


def test_no_token_that_ends_a_row_pads(llama_without_padding):
    rows = [[5, 0], [7, 8, 9, 1], [4], [6, 2, 3]]
    expected = one_at_a_time(
        AutoModelForSequenceClassification.from_pretrained(llama_without_padding), rows
    )
    assert module._scores(
        module._load(llama_without_padding, None, "auto"), rows, 4
    ) == pytest.approx(expected, abs=1e-5)


def test_one_side_of_messages_is_read_as_text(llama):
    texts = reward_model(["42"], ["6 * 7?"], model=llama)
    assert reward_model(messages(["42"], "assistant"), ["6 * 7?"], model=llama) == texts
    assert reward_model(["42"], messages(["6 * 7?"], "user"), model=llama) == texts
    assert (
        reward_model(messages(["42"], "assistant"), messages(["6 * 7?"], "user"), model=llama)
        != texts
    )


def test_special_tokens_are_the_tokenizers_for_texts_and_the_templates_for_messages(tmp_path):
    tokenizer = tiny_tokenizer()
    first = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", first)]
    )
    folder = save(tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id)
    plain = tiny_tokenizer()
    token_ids = [
        [first, *plain("6 * 7? 42").input_ids],
        plain("<|user|>6 * 7?<|assistant|> 42<|end|>").input_ids,
    ]
    expected = one_at_a_time(AutoModelForSequenceClassification.from_pretrained(folder), token_ids)
    of_text = reward_model([" 42"], ["6 * 7?"], model=folder)
    of_messages = reward_model(
        messages([" 42"], "assistant"), messages(["6 * 7?"], "user"), model=folder
    )
    assert of_text + of_messages == pytest.approx(expected, abs=1e-5)


def test_center_and_scale(llama):
    [score] = reward_model(["42"], ["6 * 7?"], model=llama)
    [reward] = reward_model(["42"], ["6 * 7?"], model=llama, center=2.0, scale=-4.0)
    assert reward == pytest.approx((score - 2) / -4)


def test_a_long_text_loses_its_beginning(llama):
    [long] = reward_model([" 42"], ["word " * 50 + "6 * 7?"], model=llama, max_length=6)
    [other] = reward_model([" 42"], ["other " * 70 + "6 * 7?"], model=llama, max_length=6)
    assert long == other
    assert long != reward_model([" 43"], ["word " * 50 + "6 * 7?"], model=llama, max_length=6)[0]


def test_reads_no_more_than_the_model_has_positions_for(bert):
    [reward] = reward_model(["word " * 500], [""], model=bert)
    assert math.isfinite(reward)


def test_reads_no_more_than_the_tokenizer_says(tmp_path):
    folder = save(tmp_path, tiny_tokenizer(), pad_token_id=0)
    long = [" 42"], ["word " * 50]
    [limited] = reward_model(*long, model=folder, max_length=5)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 5
    tokenizer.save_pretrained(folder)
    module._load.cache_clear()
    assert reward_model(*long, model=folder) == [limited]


def test_nothing_to_read_and_nothing_to_tell(tmp_path, tokenizer, llama):
    assert reward_model([], [], model=llama) == []
    assert reward_model(["", "42"], ["", ""], model=llama)[0] is None
    broken = LlamaForSequenceClassification.from_pretrained(llama)
    broken.score.weight.data.fill_(math.nan)
    broken.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert reward_model(["42"], ["6 * 7?"], model=str(tmp_path)) == [None]


def test_a_padding_token_outside_the_vocabulary(tmp_path, tokenizer):
    folder = save(tmp_path, tokenizer, pad_token_id=None)
    expected = direct(folder, PROMPTS, COMPLETIONS)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"pad_token_id": null', '"pad_token_id": -1'))
    assert '"pad_token_id": -1' in path.read_text()
    assert reward_model(COMPLETIONS, PROMPTS, model=folder) == pytest.approx(expected, abs=1e-5)


def adapter_of(base, folder, **lora):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **lora)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_an_adapter_with_a_head_on_a_language_model(
    tmp_path, tiny_checkpoint, tokenizer, own_tokenizer
):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1)
    trained = adapter_of(base, tmp_path, task_type="SEQ_CLS")
    if own_tokenizer:
        own = tiny_tokenizer()
        own.chat_template = "{% for message in messages %}({{ message['content'] }}){% endfor %}"
        own.save_pretrained(tmp_path)
    form = "({})({})" if own_tokenizer else "<|user|>{}<|assistant|>{}<|end|>"
    token_ids = tokenizer(list(map(form.format, PROMPTS, COMPLETIONS))).input_ids
    expected = one_at_a_time(trained, token_ids)
    pairs = messages(COMPLETIONS, "assistant"), messages(PROMPTS, "user")
    assert reward_model(*pairs, model=str(tmp_path)) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_of_a_reward_model(tmp_path, llama, tokenizer):
    trained = adapter_of(AutoModelForSequenceClassification.from_pretrained(llama), tmp_path)
    token_ids = tokenizer(list(map(add, PROMPTS, COMPLETIONS))).input_ids
    rewards = reward_model(COMPLETIONS, PROMPTS, model=str(tmp_path))
    assert rewards == pytest.approx(one_at_a_time(trained, token_ids), abs=1e-5)
    assert rewards != pytest.approx(reward_model(COMPLETIONS, PROMPTS, model=llama), abs=1e-3)


def test_leaves_the_trainers_state_alone(tmp_path, tiny_checkpoint):
    adapter_of(
        AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1),
        tmp_path,
        task_type="SEQ_CLS",
    )
    torch.manual_seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    kept = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )
    reward_model(COMPLETIONS, PROMPTS, model=str(tmp_path), dtype="bfloat16")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    ) == kept


def test_is_loaded_once_without_gradients(llama):
    reward_model(["42"], ["6 * 7?"], model=llama)
    loads = module._load.cache_info().misses
    reward_model(["43"], ["6 * 7?"], model=llama, batch_size=2, max_length=9, center=1.0)
    assert module._load.cache_info().misses == loads
    model = module._load(llama, None, "auto").model
    assert not model.training
    for parameter in model.parameters():
        assert not parameter.requires_grad


def test_dtype_and_device(llama):
    [exact] = reward_model(["42"], ["6 * 7?"], model=llama)
    [rounded] = reward_model(["42"], ["6 * 7?"], model=llama, dtype="bfloat16", device="cpu")
    assert rounded != exact and rounded == pytest.approx(exact, abs=0.3)
    assert module._load(llama, "cpu", "bfloat16").model.dtype == torch.bfloat16


def test_is_a_reward_with_options():
    reward = load_reward("grpo_hf.rewards.reward_model:reward_model")
    assert reward.columns == ()
    settings = reward.function.reward_settings
    assert settings.in_process and settings.batched


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": None}, "model is None; expected a folder or Hub name"),
        ({"model": ""}, "model is ''"),
        ({"batch_size": 0}, "batch_size is 0, an int; expected a whole number, 1 or more"),
        ({"max_length": None}, "max_length is None"),
        ({"center": math.nan}, "center is nan"),
        ({"scale": 0}, "scale is 0, an int; expected a number other than 0"),
        ({"device": "gpu"}, "device is 'gpu', a str; expected a device of torch"),
        ({"dtype": "float99"}, "dtype is 'float99', a str; expected 'auto' or a type of torch"),
        ({"dtype": "nn"}, "dtype is 'nn'"),
    ],
    ids=str,
)
def test_impossible_options_say_what_came(llama, wrong, message):
    with pytest.raises(RewardSpecError, match=message):
        reward_model(["42"], ["6 * 7?"], **({"model": llama} | wrong))


def test_a_missing_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nowhere"), str(tmp_path), "some-org/not-downloaded"):
        with pytest.raises(
            RewardSpecError, match=r"cannot be loaded: .* Expected a folder or Hub name"
        ) as raised:
            reward_model(["42"], ["6 * 7?"], model=name)
        assert repr(name) in str(raised.value)


def test_an_adapter_without_its_base(tmp_path, llama):
    adapter_of(AutoModelForSequenceClassification.from_pretrained(llama), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace(llama, str(tmp_path / "gone")))
    with pytest.raises(RewardSpecError, match=r"cannot be loaded: .*gone"):
        reward_model(["42"], ["6 * 7?"], model=str(tmp_path))


def test_an_adapter_without_a_head(tmp_path, tiny_checkpoint):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=1)
    adapter_of(base, tmp_path)
    with pytest.raises(RewardSpecError, match=r"lacks weights of a reward model \(score.weight\)"):
        reward_model(["42"], ["6 * 7?"], model=str(tmp_path))


def test_a_language_model_is_no_reward_model(tiny_checkpoint):
    with pytest.raises(RewardSpecError, match=r"lacks weights of a reward model \(score.weight\)"):
        reward_model(["42"], ["6 * 7?"], model=str(tiny_checkpoint))


def test_a_classifier_is_no_reward_model(tmp_path, tokenizer):
    folder = save(tmp_path, tokenizer, num_labels=3)
    with pytest.raises(RewardSpecError, match="has 3 labels; expected 1, the reward"):
        reward_model(["42"], ["6 * 7?"], model=folder)


def test_a_model_without_its_tokenizer(tmp_path, llama):
    LlamaForSequenceClassification.from_pretrained(llama).save_pretrained(tmp_path)
    with pytest.raises(RewardSpecError, match=r"cannot be loaded: .* with its tokenizer"):
        reward_model(["42"], ["6 * 7?"], model=str(tmp_path))


def test_messages_need_a_chat_template(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    folder = save(tmp_path, tokenizer, pad_token_id=0)
    assert len(reward_model(["42"], ["6 * 7?"], model=folder)) == 1
    with pytest.raises(
        RewardSpecError, match="has no chat template, and prompts and completions are messages"
    ):
        reward_model(messages(["42"], "assistant"), messages(["6 * 7?"], "user"), model=folder)
