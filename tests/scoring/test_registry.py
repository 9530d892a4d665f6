"""The one door for rewards: every way in, and what it says when a reward does not fit."""

import asyncio
import inspect
import os
import subprocess
import sys
from functools import partial

import pytest
from trl.trainer.utils import is_async_callable

from grpo_hf.errors import DataError, RewardError, RewardNotFound, RewardSpecError
from grpo_hf.scoring.registry import installed_rewards, load_reward, register_reward
from grpo_hf.scoring.reward import require_columns

COMPLETIONS = ["one", "three"]


def lengths(completions, *, scale=1.0, **columns):
    """Pays for characters.

    The second paragraph is not part of the first line.
    """
    return [scale * len(text) for text in completions]


def as_trl_calls(reward, completions=COMPLETIONS, **columns):
    """The keywords of TRL 1.16's `_calculate_rewards`."""
    return reward(
        prompts=["?"] * len(completions),
        completions=completions,
        completion_ids=[[0]] * len(completions),
        trainer_state=None,
        log_extra=print,
        log_metric=print,
        **columns,
    )


def run_python(program, **environment):
    """What `program` prints in a new process."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def modules_of(folder):
    """Names of the imported modules whose file lies in `folder`."""
    return [
        name
        for name, module in sys.modules.items()
        if str(folder) in str(getattr(module, "__file__", ""))
    ]


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr("grpo_hf.scoring.registry._registered", {})


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Put a distribution with entry points on sys.path, as an installer lays it out."""

    def install(name, version, module, source, **names):
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = "".join(f"{key} = {value}\n" for key, value in names.items())
        (info / "entry_points.txt").write_text(f"[grpo_hf.rewards]\n{lines}")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


@pytest.fixture
def reward_file(tmp_path):
    def write(source, name="my_rewards.py"):
        (tmp_path / name).write_text(source)
        return tmp_path

    return write


class TestWaysIn:
    def test_function(self):
        reward = load_reward(lengths)
        assert as_trl_calls(reward) == [3.0, 5.0]
        assert (reward.name, reward.spec, reward.source) == (
            "lengths",
            f"{__name__}:lengths",
            __name__,
        )
        assert reward.doc == "Pays for characters."
        assert load_reward(reward) is reward

    def test_registered_name(self):
        assert register_reward("concise")(lengths) is lengths
        reward = load_reward("concise")
        assert as_trl_calls(reward) == [3.0, 5.0]
        assert (reward.name, reward.__name__, reward.spec) == ("concise", "concise", "concise")
        assert reward.source == f"registered in {__name__}"

    def test_entry_point(self, distribution):
        distribution(
            "pkg-a", "1.2", "pkg_a", "def score(completions): return [7.0]", from_a="pkg_a:score"
        )
        reward = load_reward("from_a")
        assert as_trl_calls(reward, ["x"]) == [7.0]
        assert (reward.name, reward.source) == ("from_a", "pkg-a 1.2")

    def test_our_own_rewards_are_entry_points(self):
        reward = load_reward("gsm8k")
        assert as_trl_calls(reward, ["#### 42", "#### 41"], answer=["#### 42"] * 2) == [1.0, 0.0]
        assert reward.source.startswith("grpo-hf ")
        assert reward.columns == ("answer",)

    def test_module_and_function(self, distribution):
        distribution("pkg-b", "1", "pkg_b", "def score(completions): return [7.0]")
        reward = load_reward("pkg_b:score")
        assert as_trl_calls(reward, ["x"]) == [7.0]
        assert (reward.name, reward.spec, reward.source) == ("score", "pkg_b:score", "pkg_b")

    def test_file_is_relative_to_the_given_folder(self, reward_file):
        folder = reward_file("def score(completions): return [7.0]")
        reward = load_reward("./my_rewards.py:score", relative_to=folder)
        assert as_trl_calls(reward, ["x"]) == [7.0]
        assert (reward.name, reward.spec) == ("score", "./my_rewards.py:score")
        assert reward.source == str(folder / "my_rewards.py")

    def test_file_is_relative_to_the_current_folder_by_default(self, reward_file, monkeypatch):
        monkeypatch.chdir(reward_file("def score(completions): return [7.0]"))
        assert load_reward("my_rewards.py:score").source == "my_rewards.py"

    def test_absolute_file_and_brackets_in_its_path(self, reward_file):
        folder = reward_file("def score(completions, *, by=1): return [by]", "old (copy).py")
        assert as_trl_calls(load_reward(f"{folder / 'old (copy).py'}:score")) == [1]
        assert as_trl_calls(load_reward(f"{folder / 'old (copy).py'}:score(by=2)")) == [2]

    def test_package_that_somebody_installs(self, tmp_path):
        """A stranger's package, built and installed by pip, is found by its entry point in a new
        process.
        """
        package, site = tmp_path / "stranger", tmp_path / "site"
        package.mkdir()
        (package / "stranger.py").write_text(
            "def polite(completions):\n"
            "    return [float('please' in text) for text in completions]\n"
        )
        (package / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "stranger"\nversion = "3.1"\n'
            '[project.entry-points."grpo_hf.rewards"]\npolite = "stranger:polite"\n'
            '[tool.setuptools]\npy-modules = ["stranger"]\n'
        )
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
        ]
        subprocess.run([*pip, "--target", str(site), str(package)], check=True)
        program = (
            "from grpo_hf import load_reward; reward = load_reward('polite');"
            "print(reward.source, reward(completions=['yes please', 'no']))"
        )
        assert run_python(program, PYTHONPATH=str(site)) == "stranger 3.1 [1.0, 0.0]"


class TestNamesGivenTwice:
    def test_two_distributions(self, distribution):
        distribution(
            "pkg-c", "1.0", "pkg_c", "def score(completions): return [3.0]", same="pkg_c:score"
        )
        distribution(
            "pkg-d", "2.0", "pkg_d", "def score(completions): return [4.0]", same="pkg_d:score"
        )
        with pytest.raises(RewardSpecError, match="twice") as caught:
            load_reward("same")
        assert "pkg-c 1.0 (pkg_c:score)" in str(caught.value)
        assert "pkg-d 2.0 (pkg_d:score)" in str(caught.value)
        assert load_reward("pkg_d:score").function(["x"]) == [
            4.0
        ]  # the way out that the message names

    def test_entry_point_and_registration(self):
        register_reward("gsm8k")(lengths)
        with pytest.raises(
            RewardSpecError, match=r"grpo-hf .*\(grpo_hf.rewards.gsm8k:gsm8k\)"
        ) as caught:
            load_reward("gsm8k")
        assert f"registered in {__name__} ({__name__}:lengths)" in str(caught.value)

    def test_a_package_may_declare_what_it_registers(self, distribution):
        source = (
            "from grpo_hf import register_reward\n"
            "@register_reward('both')\n"
            "def score(completions):\n    return [5.0]\n"
        )
        distribution("pkg-e", "1", "pkg_e", source, both="pkg_e:score")
        for _ in range(2):  # the first load imports the module, which registers
            reward = load_reward("both")
            assert (reward.source, reward(completions=["x"])) == ("pkg-e 1", [5.0])

    def test_two_registrations(self):
        def other(completions):
            return [0.0]

        register_reward("concise")(lengths)
        with pytest.raises(
            RewardSpecError, match=f"'concise' is taken by {__name__}:lengths"
        ) as caught:
            register_reward("concise")(other)
        assert "other under another name" in str(caught.value)
        assert load_reward("concise").function is lengths

    def test_a_function_defined_again_takes_its_own_place(self):
        def define(value):
            @register_reward("again")
            def score(completions):
                return [value]

        define(1.0)
        define(2.0)
        assert load_reward("again")(completions=["x"]) == [2.0]

    @pytest.mark.parametrize("name", ["", "a b", "a(b=1)", "a:b", lengths])
    def test_names_that_no_spec_could_hold(self, name):
        with pytest.raises(RewardSpecError, match="expected a name"):
            register_reward(name)


class TestOptions:
    @pytest.fixture(autouse=True)
    def _lengths(self):
        register_reward("lengths")(lengths)

    @pytest.mark.parametrize(
        "spec", ["lengths(scale=2)", " lengths ( scale = 2, ) ", {"lengths": {"scale": 2}}]
    )
    def test_text_and_mapping(self, spec):
        reward = load_reward(spec)
        assert as_trl_calls(reward) == [6, 10]
        assert (reward.name, reward.spec, reward.options) == (
            "lengths",
            "lengths(scale=2)",
            {"scale": 2},
        )
        assert load_reward(reward.spec).options == reward.options

    @pytest.mark.parametrize("spec", ["lengths()", {"lengths": None}, {"lengths": {}}])
    def test_none_given(self, spec):
        reward = load_reward(spec)
        assert (reward.spec, as_trl_calls(reward)) == ("lengths", [3.0, 5.0])

    def test_literals_of_any_kind(self):
        @register_reward("echo")
        def echo(completions, *, tags=(), note="", weights=None):
            return [tags, note, weights]

        reward = load_reward(
            """echo(tags=("a(", "b)"), note="x: y()", weights={"a": -1.5, "b": None})"""
        )
        assert reward(completions=[]) == [("a(", "b)"), "x: y()", {"a": -1.5, "b": None}]

    @pytest.mark.parametrize(
        "spec",
        [
            "lengths(2)",
            "lengths(scale=two)",
            "lengths(scale=1, scale=2)",
            "lengths(**{'scale': 2})",
            "lengths(scale)",
            "lengths(scale=2",
            "lengths)",
            "lengths(scale=2)(scale=3)",
        ],
    )
    def test_text_that_is_not_options(self, spec):
        with pytest.raises(RewardError, match="lengths"):
            load_reward(spec)

    def test_values_are_never_evaluated(self, tmp_path):
        target = tmp_path / "created"
        with pytest.raises(RewardSpecError, match="literal"):
            load_reward(f"lengths(scale=open({str(target)!r}, 'w').write('x'))")
        assert not target.exists()

    def test_unknown_option(self):
        with pytest.raises(
            RewardSpecError, match=r"no option 'scal'. Did you mean 'scale'\? Its options: scale"
        ):
            load_reward("lengths(scal=2)")

    def test_a_column_is_not_an_option(self):
        with pytest.raises(RewardSpecError, match=r"no option 'answer'.* Its options: none"):
            load_reward({"gsm8k": {"answer": "42"}})

    def test_what_the_trainer_passes_is_not_an_option(self):
        register_reward("logging")(lambda completions, log_metric=None: [0.0])
        with pytest.raises(RewardSpecError, match="no option 'log_metric'"):
            load_reward("logging(log_metric=1)")

    def test_option_beats_column_of_the_same_name(self):
        assert as_trl_calls(load_reward("lengths(scale=2)"), scale=[100, 100]) == [6, 10]

    @pytest.mark.parametrize(
        "spec", [None, 3, ["lengths"], {}, {"lengths": 2}, {"lengths": {}, "gsm8k": {}}]
    )
    def test_neither_name_nor_function(self, spec):
        with pytest.raises(RewardSpecError, match="expected a function, a name"):
            load_reward(spec)


class TestNotFound:
    def test_unknown_name_says_what_there_is_and_how_to_name_ones_own(self):
        register_reward("concise")(lengths)
        with pytest.raises(RewardNotFound) as caught:
            load_reward("gsm8")
        message = str(caught.value)
        assert "'gsm8' is not known. Did you mean 'gsm8k'?" in message
        assert "answer_format, concise, countdown, " in message and "gsm8k, judge, " in message
        assert "./my_rewards.py:my_function" in message
        assert "grpo-hf rewards list" in message

    @pytest.mark.parametrize(
        "spec", ["", ":", "./my_rewards.py", "./my_rewards:score", "../x", "a/b:c"]
    )
    def test_odd_text(self, spec):
        with pytest.raises(RewardNotFound, match="is not known"):
            load_reward(spec)

    def test_missing_module(self):
        with pytest.raises(
            RewardNotFound, match=r"No module named 'no_such_module'.*\./my_rewards\.py:my_function"
        ):
            load_reward("no_such_module.rewards:score")

    def test_missing_function(self):
        with pytest.raises(RewardNotFound, match=r"no function 'gsm8'.* Did you mean 'gsm8k'"):
            load_reward("grpo_hf.rewards.gsm8k:gsm8")

    def test_missing_file(self, reward_file):
        folder = reward_file("")
        with pytest.raises(RewardNotFound, match=r"my_reward\.py\. Did you mean 'my_rewards\.py'"):
            load_reward("./my_reward.py:score", relative_to=folder)

    def test_missing_function_in_a_file(self, reward_file):
        folder = reward_file(
            "def accuracy(completions): return []\ndef _private(completions): return []"
        )
        with pytest.raises(
            RewardNotFound,
            match=r"'acuracy'.* Did you mean 'accuracy'\? Expected one of: accuracy\.",
        ):
            load_reward("./my_rewards.py:acuracy", relative_to=folder)


class TestFiles:
    def test_second_function_of_a_file_does_not_run_it_again(self, reward_file):
        folder = reward_file(
            "calls = []\ndef a(completions): calls.append('a')\ndef b(completions): return calls"
        )
        load_reward("./my_rewards.py:a", relative_to=folder)(completions=[])
        assert len(modules_of(folder)) == 1
        roundabout = f"../{folder.name}/my_rewards.py:b"
        assert load_reward(roundabout, relative_to=folder)(completions=[]) == ["a"]

    def test_files_of_the_same_name_are_two_modules(self, tmp_path):
        for value in (1, 2):
            (tmp_path / str(value)).mkdir()
            (tmp_path / str(value) / "r.py").write_text(f"def score(completions): return [{value}]")
        rewards = [
            load_reward("./r.py:score", relative_to=tmp_path / folder) for folder in ("1", "2")
        ]
        assert [reward(completions=["x"]) for reward in rewards] == [[1], [2]]

    def test_module_name_is_the_same_in_every_process(self, reward_file):
        spec = f"{reward_file('def score(completions): return []') / 'my_rewards.py'}:score"
        program = (
            f"from grpo_hf import load_reward; print(load_reward({spec!r}).function.__module__)"
        )
        names = {run_python(program, PYTHONHASHSEED=seed) for seed in ("1", "2")}
        assert len(names) == 1

    @pytest.mark.parametrize(
        ("source", "cause"),
        [
            ("import no_such_module", ModuleNotFoundError),
            ("1 / 0", ZeroDivisionError),
            ("def", SyntaxError),
            ("raise SystemExit(3)", SystemExit),
        ],
    )
    def test_failed_import_leaves_nothing_behind(self, reward_file, source, cause):
        folder = reward_file(source)
        with pytest.raises(
            RewardSpecError, match=f"my_rewards.py cannot be imported: {cause.__name__}"
        ) as caught:
            load_reward("./my_rewards.py:score", relative_to=folder)
        assert isinstance(caught.value.__cause__, cause)
        assert modules_of(folder) == []
        reward_file("def score(completions): return [1.0]")
        assert load_reward("./my_rewards.py:score", relative_to=folder)(completions=["x"]) == [1.0]

    def test_interrupt_stays_an_interrupt(self, reward_file):
        folder = reward_file("raise KeyboardInterrupt")
        with pytest.raises(KeyboardInterrupt):
            load_reward("./my_rewards.py:score", relative_to=folder)
        assert modules_of(folder) == []

    def test_module_that_lacks_what_it_imports_is_broken_not_missing(self, distribution):
        distribution("pkg-f", "1", "pkg_f", "import no_such_module")
        with pytest.raises(RewardSpecError, match="No module named 'no_such_module'"):
            load_reward("pkg_f:score")


class TestSignature:
    @pytest.mark.parametrize("spec", ["pathlib:Path", "math:pi", "builtins:max"])
    def test_what_is_no_function(self, spec):
        with pytest.raises(
            RewardSpecError, match=r"expected a function fn\(prompts, completions, completion_ids"
        ):
            load_reward(spec)

    def test_generators(self):
        def generator(completions):
            yield 1.0

        async def async_generator(completions):
            yield 1.0

        for function in (generator, async_generator, partial(generator)):
            with pytest.raises(RewardSpecError, match="is a generator"):
                load_reward(function)

    def test_signature_found_and_expected_are_printed(self):
        def score(prediction, *, scale: float = 1.0):
            return []

        with pytest.raises(RewardSpecError) as caught:
            load_reward(score)
        assert "score(prediction, *, scale: float = 1.0)" in str(caught.value)
        assert "fn(prompts, completions, completion_ids, **columns) -> list[float | None]" in str(
            caught.value
        )

    def test_completions_by_position_only(self):
        def score(completions, /):
            return []

        with pytest.raises(RewardSpecError, match=r"score\(completions, /\)"):
            load_reward(score)

    @pytest.mark.parametrize(
        "function", [lambda prompt, **columns: [], lambda completion, **columns: []]
    )
    def test_singular_of_what_the_trainer_passes(self, function):
        with pytest.raises(RewardSpecError, match="has the signature"):
            load_reward(function)


class TestColumns:
    def test_parameters_that_only_the_dataset_can_fill(self):
        def score(
            prompts,
            completions,
            completion_ids,
            answer,
            log_extra,
            hint=None,
            *,
            level,
            limit=3,
            **columns,
        ):
            return []

        assert load_reward(score).columns == ("answer", "level")

    def test_an_option_is_not_a_column(self):
        @register_reward("limited")
        def limited(completions, *, limit):
            return [limit]

        assert load_reward("limited").columns == ("limit",)
        assert load_reward("limited(limit=3)").columns == ()
        assert as_trl_calls(load_reward("limited(limit=3)")) == [3]

    def test_function_gets_only_what_it_can_take(self):
        def score(completions, answer):
            return [text == gold for text, gold in zip(completions, answer, strict=True)]

        assert as_trl_calls(load_reward(score), answer=["one", "two"], other=[0, 0]) == [
            True,
            False,
        ]

    def test_function_with_keywords_gets_all(self):
        seen = {}
        as_trl_calls(
            load_reward(lambda completions, **columns: seen.update(columns)), answer=[1, 2]
        )
        assert seen.keys() == {
            "prompts",
            "completion_ids",
            "trainer_state",
            "log_extra",
            "log_metric",
            "answer",
        }


class TestAsync:
    def test_trl_sees_an_async_reward(self):
        @register_reward("referee")
        async def referee(completions, *, mark=1.0):
            await asyncio.sleep(0)
            return [mark] * len(completions)

        reward = load_reward("referee(mark=0.5)")
        assert reward.is_async
        assert is_async_callable(reward)
        assert asyncio.run(as_trl_calls(reward)) == [0.5, 0.5]

    def test_object_with_an_async_call(self):
        class Judge:
            """Asks somebody."""

            async def __call__(self, completions):
                return [1.0]

        reward = load_reward(Judge())
        assert (reward.name, reward.doc) == ("Judge", "Asks somebody.")
        assert is_async_callable(reward)
        assert asyncio.run(as_trl_calls(reward)) == [1.0]

    def test_sync_reward_is_not_async(self):
        reward = load_reward(lengths)
        assert not reward.is_async
        assert not is_async_callable(reward)

    def test_partial_keeps_the_name_of_its_function(self):
        reward = load_reward(partial(lengths, scale=3.0))
        assert (reward.name, reward.doc, as_trl_calls(reward)) == (
            "lengths",
            "Pays for characters.",
            [9.0, 15.0],
        )


class TestListing:
    def test_names_with_columns_and_options(self):
        register_reward("concise")(lengths)
        listed = {reward.name: reward for reward in installed_rewards()}
        assert list(listed) == sorted(listed)
        assert {"answer_format", "concise", "gsm8k", "overlong"} <= listed.keys()
        assert (listed["gsm8k"].columns, listed["gsm8k"].options) == (("answer",), {})
        assert (listed["concise"].options, listed["concise"].doc) == (
            {"scale": 1.0},
            "Pays for characters.",
        )
        assert listed["overlong"].options == {
            name: parameter.default
            for name, parameter in inspect.signature(
                load_reward("overlong").function
            ).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        assert not any(reward.error for reward in listed.values())

    def test_broken_entry_points_are_listed_with_their_error(self, distribution):
        names = {"broken": "pkg_g:score", "gone": "pkg_not_there:score"}
        distribution("pkg-g", "1", "pkg_g", "raise RuntimeError('no licence')", **names)
        listed = {reward.name: reward for reward in installed_rewards()}
        assert listed["broken"].source == listed["gone"].source == "pkg-g 1"
        assert "pkg_g:score of pkg-g 1" in listed["broken"].error
        assert "RuntimeError: no licence" in listed["broken"].error
        assert "No module named 'pkg_not_there'" in listed["gone"].error
        assert not listed["gsm8k"].error


def test_the_door_is_light():
    heavy = {"torch", "trl", "transformers", "grpo_hf.rewards"}
    assert (
        run_python(f"import sys, grpo_hf.scoring.registry; print({heavy} & set(sys.modules))")
        == "set()"
    )


def test_columns_that_rewards_need():
    def style(completions): ...
    def length(completions, prompt_length=0): ...

    rewards = [load_reward(reward) for reward in ("gsm8k", style, length)]
    require_columns(rewards, ["question", "answer"], "train.jsonl", "--columns {}=<its name there>")
    expected = (
        r"'gsm8k' needs the column 'answer', which train.jsonl "
        r".*Did you mean 'awnser'.*--columns answer=<its"
    )
    with pytest.raises(DataError, match=expected):
        require_columns(
            rewards, ["question", "awnser"], "train.jsonl", "--columns {}=<its name there>"
        )
