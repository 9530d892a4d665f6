"""The settings of a recipe that name its task, beside those of the model and of the training."""

from dataclasses import dataclass, field


@dataclass
class TaskArguments:
    """What to train on and what to reward.

    Args:
        dataset_path (`str`, *optional*): a local folder with a file per split, or one jsonl, json,
            csv or parquet file, `embedded:word_problems` or `embedded:running_sums`.
        dataset_name (`str`, *optional*): a dataset on the Hub; it is used when `dataset_path` is
            not given.
        dataset_config (`str`, *optional*): the configuration of the Hub dataset.
        dataset_train_split (`str`): the split to train on.
        dataset_test_split (`str`): the split to evaluate on; without one, rows are held out from
            the training split.
        dataset_streaming (`bool`): read the training rows while the run trains, in shuffled order
            within a buffer, as TRL's script does; `max_steps` says how long.
        prompt_column (`str`, *optional*): the column with the prompt; by default the first of
            prompt, messages, question and problem that the data has.
        columns (`list[str]`): renames, `name_that_rewards_know=name_in_the_data`.
        rendered_prompts (`bool`, *optional*): whether prompts that are text were rendered with the
            chat template already; the model then reads them as they are. By default they are taken
            so if all of them hold the template's tokens. Otherwise a text becomes the turn of a
            user, if the tokenizer has a chat template.
        system_prompt (`str`, *optional*): the system message of every prompt.
        instruction (`str`, *optional*): a text that is put below every prompt.
        rewards (`list[str]`): names, `./file.py:function` relative to the recipe (in a flag: to
            the current folder), or `package.module:function`. Options are given as
            `name(key=value)`, or in YAML as `name: {key: value}`.
        tools (`list[str]`): functions that the model may call while it answers: `python`, which
            runs a program in the sandbox, `./file.py:function` relative to the recipe (in a
            flag: to the current folder), or `package.module:function`. `--tools ''` takes back
            those of the recipe.
        adapter (`str`, *optional*): a saved adapter to continue; the reference is then a frozen
            copy of it.
        gguf_file (`str`, *optional*): a GGUF file in the model's folder or repository, which holds
            the base weights.
        eval_rows (`int`): the number of held-out prompts on which base and adapter are compared at
            the end, and evaluations during the training are made (`eval_strategy`); 0 for none.
        eval_reward (`str`, *optional*): the reward whose full mark counts as a right answer; by
            default the first.
        eval_data (`list[str]`): sets on which base and adapter are compared at the end as well, and
            by `grpo-hf eval`: gsm8k, math500, svamp, mgsm_en, mbpp, ..., or `NAME=PATH`.
        eval_samples (`int`): sampled answers to each of these problems and to the held-out ones,
            for pass@k and maj@k; 0 for greedy answers only.
        cold_start_steps (`int`): supervised steps that teach the embedded model the format before
            GRPO (recipes/gsm8k.py).
    """

    dataset_path: str | None = field(
        default=None, metadata={"help": "Local folder, or jsonl/csv/parquet file."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub dataset."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read the training rows while the run trains."}
    )
    prompt_column: str | None = field(default=None, metadata={"help": "Column with the prompt."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Renames: name_that_rewards_know=name_in_the_data."}
    )
    rendered_prompts: bool | None = field(
        default=None,
        metadata={"help": "Prompts are text that was rendered with the chat template already."},
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every prompt."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Text below every prompt."})
    rewards: list[str] = field(
        default_factory=list, metadata={"help": "Rewards: names or ./file.py:function."}
    )
    tools: list[str] = field(
        default_factory=list, metadata={"help": "Tools that the model may call, such as python."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Saved adapter to continue."})
    gguf_file: str | None = field(
        default=None, metadata={"help": "GGUF file to take the base from."}
    )
    eval_rows: int = field(
        default=200,
        metadata={
            "help": "Held-out prompts to evaluate on; of data without a test split a fifth at "
            "most, unless it is given. 0: none."
        },
    )
    eval_reward: str | None = field(
        default=None, metadata={"help": "Reward whose full mark is a right answer."}
    )
    eval_data: list[str] = field(
        default_factory=list, metadata={"help": "More sets to evaluate on: svamp, or NAME=PATH."}
    )
    eval_samples: int = field(
        default=0, metadata={"help": "Sampled answers per problem of evaluations; 0: greedy only."}
    )
    cold_start_steps: int = field(
        default=0, metadata={"help": "Supervised steps of the embedded model."}
    )
