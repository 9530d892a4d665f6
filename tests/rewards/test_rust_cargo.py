# ruff: noqa: E501  (samples of code stand on one line each)
import shutil
import time

import pytest
from support.tiers import BEST

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards import rust_cargo as module
from grpo_hf.rewards.rust_cargo import rust_cargo

pytestmark = pytest.mark.skipif(
    not shutil.which("cargo") or not shutil.which("cargo-clippy"),
    reason="cargo or clippy is not installed",
)

DOUBLE = "pub fn double(x: i32) -> i32 {\n    x * 2\n}\n"
TESTS = """
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two() {
        let four: i32 = double(2);
        assert_eq!(four, 4);
    }

    #[test]
    fn negative() {
        assert_eq!(double(-1), -2);
    }
}
"""


def score(code, tests=TESTS, **options):
    [reward] = rust_cargo([f"```rust\n{code}\n```"], [tests], **{"sandbox": BEST, **options})
    return reward


@pytest.mark.long
@pytest.mark.parametrize("level", [BEST, "none"])
def test_right_solution(level):
    assert score(DOUBLE, sandbox=level) == 1.0
    assert score(DOUBLE.replace("pub ", ""), sandbox=level) == 1.0


@pytest.mark.long
def test_parts():
    assert score(DOUBLE.replace("x * 2", "x * x")) == pytest.approx(0.2 + 0.1 + 0.35)
    assert score(DOUBLE.replace("x * 2", "return x * 2;")) == pytest.approx(0.9)
    assert score(
        "#![allow(clippy::all)]\n" + DOUBLE.replace("x * 2", "return x * 2;")
    ) == pytest.approx(0.9)
    assert score(DOUBLE.replace("x * 2", "x * 2 + 1")) == pytest.approx(0.2)
    assert score(DOUBLE, compiles=0.5, clippy=0, passes=0.5) == 1.0


@pytest.mark.parametrize(
    "code", ["", "pub fn double(x: i32) -> i32 {", "pub fn triple(x: i32) -> i32 { x }", "no code"]
)
def test_what_does_not_compile_scores_zero(code):
    assert score(code) == 0.0


@pytest.mark.long
def test_an_endless_test_costs_its_share_only():
    start = time.monotonic()
    code = "pub fn double(x: i32) -> i32 {\n    while x == 2 {}\n    x * 2\n}\n"
    assert 0.55 <= score(code, test_timeout=1) <= 0.65
    assert time.monotonic() - start < 20


def test_a_timeout_of_the_whole_keeps_what_was_told():
    code = "pub fn double(x: i32) -> i32 {\n    while x < 9 {}\n    x\n}\n"
    assert score(code, timeout=4, test_timeout=60) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "code",
    [
        "pub fn double(_: i32) -> i32 { std::process::exit(0) }",
        "use std::process as p; pub fn double(_: i32) -> i32 { p::exit(0) }",
        "use std::{process as p, fmt}; pub fn double(_: i32) -> i32 { p::exit(0) }",
        "use std::{/*;*/process}; pub fn double(_: i32) -> i32 { process :: exit(0) }",
        "use std::*; pub fn double(_: i32) -> i32 { process/**/::exit(0) }",
        "pub fn double(_: i32) -> i32 { std:: // x\n r#process::exit(0) }",
        "pub fn double(_: i32) -> i32 { std::/* /* */ */process/* /* */ */::exit(0) }",
        "macro_rules! assert_eq { ($($t:tt)*) => {} }\npub fn double(_: i32) -> i32 { 0 }",
        "macro_rules /**/ ! m { ($a:ident) => { std::$a::exit(0) } }\npub fn double(_: i32) -> i32 { m!(process) }",
        "pub use std::stringify as assert_eq;\npub fn double(_: i32) -> i32 { 0 }",
        'const T: &str = include_str!("lib.rs");\npub fn double(x: i32) -> i32 { T.len() as i32 * x }',
        "pub fn double(_: i32) -> i32 { unsafe { std::hint::unreachable_unchecked() } }",
        "#![allow(unsafe_code)]\npub fn double(_: i32) -> i32 { unsafe { 1 } }",
        'unsafe extern "C" { fn _exit(code: i32) -> !; }\npub fn double(_: i32) -> i32 { unsafe { _exit(0) } }',
        "#[no_mangle]\npub fn double(x: i32) -> i32 { x * 2 }",
        'pub fn double(x: i32) -> i32 { std::fs::read("/etc/passwd").unwrap(); x * 2 }',
    ],
)
def test_forged_passes_are_no_passes(code):
    assert score(code) == 0.0


@pytest.mark.long
def test_own_tests_count_for_nothing():
    own = "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn a() {}\n    #[test]\n    fn b() { double(1); }\n}\n"
    wrong = DOUBLE.replace("x * 2", "x * x")
    assert score(wrong + own) == score(wrong)
    assert score(DOUBLE + own) == 1.0


def test_words_are_no_crime():
    code = "/// Must include the process and its environment, unsafe or not.\npub fn double(x: i32) -> i32 {\n"
    code += "    let (process, env) = (x, x);\n    process + env\n}\n"
    assert score(code) == 1.0


@pytest.mark.skipif(BEST == "limits", reason="only bubblewrap cuts the network off")
def test_no_network():
    code = 'pub fn double(x: i32) -> i32 {\n    match std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("1.1.1.1:53")) {\n'
    code += "        Ok(()) => 0,\n        Err(_) => x * 2,\n    }\n}\n"
    assert score(code) >= 0.9


def test_no_build_script_is_run():
    assert "build" not in module._MANIFEST
    assert score("// build.rs\nfn main() { panic!() }\n" + DOUBLE) >= 0.9


def test_memory_of_a_test_is_capped():
    code = "pub fn double(x: i32) -> i32 {\n    let v = vec![1u8; 3 << 30];\n    x * 2 * i32::from(v[x.unsigned_abs() as usize])\n}\n"
    assert score(code) == pytest.approx(0.2)


@pytest.mark.parametrize("tests", [None, "", 3, "fn two() {}"])
def test_rows_that_cannot_judge(tests):
    assert score(DOUBLE, tests) is None


def test_impossible_options():
    with pytest.raises(RewardSpecError, match="must add up to 1"):
        score(DOUBLE, compiles=0.5)
    with pytest.raises(RewardSpecError, match=r"is -.*; expected a number, 0 or more"):
        score(DOUBLE, compiles=-0.1, clippy=0.4)
    with pytest.raises(RewardSpecError, match="timeout is 0, an int"):
        score(DOUBLE, timeout=0)
    with pytest.raises(RewardSpecError, match=r"test_timeout is 0.5"):
        score(DOUBLE, test_timeout=0.5)
    with pytest.raises(RewardSpecError, match="Did you mean 'auto'"):
        score(DOUBLE, sandbox="aut")


@pytest.fixture
def forget_toolchain():
    module._sysroot.cache_clear()
    module._check_toolchain.cache_clear()
    yield
    module._sysroot.cache_clear()
    module._check_toolchain.cache_clear()


def test_missing_cargo_says_how_to_install_it(monkeypatch, forget_toolchain):
    monkeypatch.setattr(module.shutil, "which", lambda name, path=None: None)
    with pytest.raises(
        RewardSpecError, match=r"cargo and rustc, which are not installed: see https://rustup.rs"
    ):
        rust_cargo([DOUBLE], [TESTS], sandbox=BEST)


def test_a_broken_toolchain_is_no_low_score(monkeypatch, forget_toolchain):
    monkeypatch.setattr(module, "_SCRIPT", "echo no linker >&2")
    with pytest.raises(RewardSpecError, match=r"no reward can be trusted.*no linker"):
        score(DOUBLE)


@pytest.mark.parametrize(
    "text",
    [
        "::// " * 20_000,
        "::" * 50_000,
        "/*" * 50_000,
        "::" + " " * 99_000,
        "//\n" * 33_000,
        "process" + "/**/" * 25_000,
        "::/* " * 20_000,
    ],
)
def test_long_completions_are_fast(text):
    start = time.process_time()
    assert module._is_forbidden(text)
    module._is_forbidden(text[: module._LONGEST_CODE])
    module._SILENCES_CLIPPY.search(text[: module._LONGEST_CODE])
    assert time.process_time() - start < 1.0
