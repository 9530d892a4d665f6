import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards import embedding_similarity as module
from grpo_hf.rewards.embedding_similarity import embedding_similarity

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "looked",
    "at",
    "its",
    "own",
    "red",
    "hat",
    "while",
    "it",
    "was",
]
POSITIONS = 40


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return a folder with a random BertModel and a tokenizer of whole words."""
    folder = str(tmp_path_factory.mktemp("encoder"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {}
    for word in special + WORDS:
        vocabulary.setdefault(word, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        # Large enough that texts differ.
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def score(text, reference, encoder, **options):
    [reward] = embedding_similarity([text], [reference], model=encoder, **options)
    return reward


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 20))) for _ in range(count)]


def cosine_in_numpy(one, other, folder):
    """Return the cosine, with one text at a time, without padding, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    means = []
    for text in (one, other):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        means.append(hidden[0].numpy().astype(np.float64).mean(axis=0))
    return float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))


def test_is_the_cosine_of_the_mean_hidden_states(encoder):
    texts = sentences(12)
    references = sentences(12, seed=1)
    expected = list(map(cosine_in_numpy, texts, references, [encoder] * 12))
    assert max(expected) - min(expected) > 0.1
    rewards = embedding_similarity(texts, references, model=encoder)
    assert rewards == pytest.approx(np.maximum(expected, 0.0).tolist(), abs=1e-5)


def test_identical_texts_score_one(encoder):
    texts = sentences(5)
    assert embedding_similarity(texts, texts, model=encoder) == pytest.approx([1.0] * 5, abs=1e-9)
    assert max(embedding_similarity(texts, texts, model=encoder)) <= 1.0


def test_it_is_symmetric(encoder):
    texts = sentences(6)
    references = sentences(6, seed=1)
    one = embedding_similarity(texts, references, model=encoder)
    other = embedding_similarity(references, texts, model=encoder)
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_padding_changes_nothing(encoder, batch_size):
    texts = [*sentences(9), "cat", "the cat " * 15]
    references = ["the hat"] * 11
    alone = [score(text, "the hat", encoder) for text in texts]
    together = embedding_similarity(texts, references, model=encoder, batch_size=batch_size)
    assert together == pytest.approx(alone, abs=1e-5)


def test_opposite_directions_score_zero(monkeypatch):
    directions = {"east": [1.0, 0.0], "west": [-1.0, 0.0], "north": [0.0, 1.0]}
    monkeypatch.setattr(
        module, "_embed", lambda texts, *_: np.array(list(map(directions.__getitem__, texts)))
    )
    assert embedding_similarity(["east", "west", "north"], ["east"] * 3, model="e") == [
        1.0,
        0.0,
        0.0,
    ]


def test_each_text_is_embedded_once(encoder, monkeypatch):
    embed = module._embed
    seen = []
    monkeypatch.setattr(
        module, "_embed", lambda texts, *rest: seen.extend(texts) or embed(texts, *rest)
    )
    embedding_similarity(["cat", "hat", "cat", "mat"], ["the cat"] * 4, model=encoder, batch_size=2)
    assert sorted(seen) == ["cat", "hat", "mat", "the cat"]


def test_the_model_is_loaded_once_in_float32(encoder):
    score("cat", "hat", encoder)
    before = module._encoder.cache_info().misses
    score("mat", "hat", encoder)
    assert module._encoder.cache_info().misses == before
    parameters = list(module._encoder(encoder)[1].parameters())
    assert len(parameters) > 0
    for parameter in parameters:
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
    assert not module._encoder(encoder)[1].training


@pytest.mark.parametrize("text", ["", " \n ", None, [], [{"role": "user", "content": "cat"}]])
def test_without_text_the_score_is_zero(encoder, text):
    assert (
        score(
            [{"role": "assistant", "content": text}] if text is None else text, "the cat", encoder
        )
        == 0.0
    )


@pytest.mark.parametrize("reference", [None, "", " \n", 42, ["cat"]])
def test_a_reference_without_text_is_none(encoder, reference):
    assert embedding_similarity(["cat", ""], [reference] * 2, model=encoder) == [None, None]


@pytest.mark.parametrize(
    "text", ["cat " * 10_000, "x" * 100_000, "猫坐在垫子上", "\ud800 cat", "\x00", "😀" * 100]
)
def test_hostile_texts_get_a_number(encoder, text):
    reward = score(text, "the cat", encoder)
    assert 0.0 <= reward <= 1.0


def test_only_the_first_tokens_are_read(encoder):
    head = "the cat sat on a mat"
    assert score(
        f"{head} and looked at its own", f"{head} while it was", encoder, max_length=7
    ) == pytest.approx(1.0)
    assert score(f"{head} and looked at its own", f"{head} while it was", encoder) < 0.999
    start = "the cat sat on " * POSITIONS
    assert score(start + "hat", start + "mat", encoder) == pytest.approx(1.0), (
        "the model has no more positions"
    )


def test_messages_score_like_their_text(encoder):
    text = "the cat looked at its own hat"
    message = [{"role": "assistant", "content": text}]
    assert score(message, "a red hat", encoder) == score(text, "a red hat", encoder)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_length": 0}, {"batch_size": -1}])
def test_impossible_numbers_say_what_came(options):
    [(name, value)] = options.items()
    with pytest.raises(
        RewardSpecError, match=f"{name} is {value}, an int; expected a whole number"
    ):
        embedding_similarity(["cat"], ["cat"], model="x", **options)


def test_a_model_that_is_not_there_says_so(tmp_path):
    with pytest.raises(
        RewardSpecError, match=r"model='.*nowhere' cannot be loaded .* Set it to an encoder's name"
    ):
        score("cat", "hat", str(tmp_path / "nowhere"))


def test_holds_its_model_in_the_trainers_process():
    settings = embedding_similarity.reward_settings
    assert settings.in_process and settings.batched


def test_takes_what_trl_passes(encoder):
    assert embedding_similarity(
        prompts=["a", "b"],
        completions=["the cat", ""],
        completion_ids=[[1, 2], []],
        answer=["the cat", "the hat"],
        model=encoder,
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == pytest.approx([1.0, 0.0])


def test_columns_of_different_length_are_a_bug(encoder):
    with pytest.raises(ValueError):
        embedding_similarity(["cat", "hat"], ["cat"], model=encoder)
