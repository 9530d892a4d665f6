"""The one door for rewards: every way in, and what it says when a reward does not fit."""

import inspect
import os
import subprocess
import sys

import pytest
from support.registry import as_trl_calls, lengths

from grpo_hf.errors import RewardNotFound, RewardSpecError
from grpo_hf.scoring.registry import installed_rewards, load_reward, register_reward, split_spec

HOME = lengths.__module__


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
            f"{HOME}:lengths",
            HOME,
        )
        assert reward.doc == "Pays for characters."
        assert load_reward(reward) is reward

    def test_registered_name(self):
        assert register_reward("concise")(lengths) is lengths
        reward = load_reward("concise")
        assert as_trl_calls(reward) == [3.0, 5.0]
        assert (reward.name, reward.__name__, reward.spec) == ("concise", "concise", "concise")
        assert reward.source == f"registered in {HOME}"

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

    @pytest.mark.long
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
        assert f"registered in {HOME} ({HOME}:lengths)" in str(caught.value)

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
            RewardSpecError, match=f"'concise' is taken by {HOME}:lengths"
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
        meant = r"my_reward\.py\. Did you mean '/.*/my_rewards\.py'"
        with pytest.raises(RewardNotFound, match=meant):
            load_reward("./my_reward.py:score", relative_to=folder)

    def test_file_without_a_function(self, reward_file):
        folder = reward_file(
            "from os.path import join\ndef words_of(text): return []\n"
            "def accuracy(completions, **columns): return []"
        )
        with pytest.raises(RewardNotFound) as caught:
            load_reward("./my_rewards.py", relative_to=folder)
        assert str(caught.value) == (
            "reward './my_rewards.py' is a file; name one of its functions: "
            "./my_rewards.py:accuracy."
        )

    def test_file_in_which_nothing_takes_completions(self, reward_file):
        folder = reward_file("def words_of(text): return []\ndef _private(completions): return []")
        with pytest.raises(RewardNotFound, match=r"functions: \./my_rewards\.py:words_of\.$"):
            load_reward("./my_rewards.py(limit=3)", relative_to=folder)

    def test_file_without_any_function(self, reward_file):
        folder = reward_file("", name="empty_rewards.py")
        with pytest.raises(RewardNotFound, match=r"one of its functions: none is there\.$"):
            load_reward("empty_rewards.py", relative_to=folder)

    def test_missing_function_in_a_file(self, reward_file):
        folder = reward_file(
            "from os.path import join\n"
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

    @pytest.mark.parametrize(
        ("place", "source"),
        [
            ("{folder}/task/../shared/r.py", "{folder}/task/../shared/r.py"),
            ("../shared/r.py", "shared/r.py"),
            ("../task/link.py", "task/link.py"),
            # Beyond a link, `..` is the parent of another folder.
            ("../far/../shared/r.py", "{folder}/task/../far/../shared/r.py"),
            ("../far/../only/r.py", "{folder}/task/../far/../only/r.py"),
        ],
    )
    def test_are_named_as_they_were_given(self, tmp_path, monkeypatch, place, source):
        for name in ("task", "shared", "away/deep", "away/shared", "away/only"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("shared", "away/shared", "away/only"):
            (tmp_path / name / "r.py").write_text("def score(completions): return []")
        (tmp_path / "task/link.py").symlink_to(tmp_path / "shared/r.py")
        (tmp_path / "far").symlink_to(tmp_path / "away/deep")
        monkeypatch.chdir(tmp_path)
        spec = f"{place.format(folder=tmp_path)}:score"
        found = load_reward(spec, relative_to=tmp_path / "task").source
        assert found.removeprefix("./") == source.format(folder=tmp_path)

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


class TestListing:
    @pytest.mark.parametrize("value", ["true", "True"])
    def test_constants_of_yaml_and_json(self, value):
        name, options = split_spec(f"f(strict={value}, limits=[null, 2], shown={{'x': false}})")
        assert name == "f"
        assert options == {"strict": True, "limits": [None, 2], "shown": {"x": False}}

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
