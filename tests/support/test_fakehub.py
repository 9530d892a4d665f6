"""The fake Hub against the real client, in a subprocess as every test that uses it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fakehub import LFS_FROM_BYTES, FakeHub

WEIGHTS = bytes(range(256)) * (LFS_FROM_BYTES // 256 + 1)
FOLDER = {"README.md": b"# Tiny\n", "weights.bin": WEIGHTS, "nested/a b.json": b'{"a": 1}'}
PRELUDE = """
import json
from operator import attrgetter
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

api = HfApi()

def error_of(call, attribute="__class__.__name__"):
    try:
        eval(call)
    except Exception as error:
        return attrgetter(attribute)(error)
"""


def client(hub: FakeHub, code: str, **environment: str) -> Any:
    """Run code in a process whose Hub is `hub`, and return what it puts into `result`, by way of
    JSON.
    """
    command = [sys.executable, "-c", f"{PRELUDE}\n{code}\nprint(json.dumps(result))"]
    done = subprocess.run(
        command, env=hub.environment() | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    for path, content in FOLDER.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def push(hub: FakeHub, folder: Path) -> str:
    return client(
        hub,
        "api.create_repo('tester/tiny', private=True)\n"
        f"folder = {str(folder)!r}\n"
        "first = {'repo_id': 'tester/tiny', 'commit_message': 'First'}\n"
        "result = api.upload_folder(folder_path=folder, **first).oid",
    )


@pytest.mark.long
def test_a_pushed_folder_comes_back_byte_for_byte(fake_hub, folder, tmp_path):
    sha = push(fake_hub, folder)
    assert fake_hub.files("tester/tiny") == FOLDER
    repo = fake_hub.repos["model", "tester/tiny"]
    assert (repo.private, repo.head.sha, repo.head.message) == (True, sha, "First")
    assert {path for path, file in repo.head.files.items() if file.is_lfs} == {"weights.bin"}
    assert any(request.startswith("PUT /lfs/") for request in fake_hub.requests)

    one, snapshot = client(
        fake_hub,
        "result = hf_hub_download('tester/tiny', 'weights.bin'), "
        f"snapshot_download('tester/tiny', local_dir={str(tmp_path / 'snapshot')!r})",
    )
    assert Path(one).read_bytes() == WEIGHTS
    assert Path(one).is_relative_to(fake_hub.home)
    assert {path: (Path(snapshot) / path).read_bytes() for path in FOLDER} == FOLDER


@pytest.mark.long
def test_a_second_push_replaces_adds_and_deletes(fake_hub, folder):
    first = push(fake_hub, folder)
    (folder / "README.md").write_bytes(b"# Tiny, again\n")
    result = client(
        fake_hub,
        "api.create_repo('tester/tiny', exist_ok=True)\n"
        f"api.upload_folder(repo_id='tester/tiny', folder_path={str(folder)!r})\n"
        "api.delete_file('nested/a b.json', 'tester/tiny')\n"
        "def read(revision):\n"
        "    return open(hf_hub_download('tester/tiny', 'README.md', revision=revision)).read()\n"
        "sha, paths = api.model_info('tester/tiny').sha, api.list_repo_files('tester/tiny')\n"
        f"result = read('main'), read({first!r}), sha, paths",
    )
    assert result[:2] == ["# Tiny, again\n", "# Tiny\n"]
    assert result[2] == fake_hub.repos["model", "tester/tiny"].head.sha
    assert set(result[3]) == {"README.md", "weights.bin"}
    assert sum(request.startswith("PUT /lfs/") for request in fake_hub.requests) == 1, (
        "unchanged weights went again"
    )


@pytest.mark.long
def test_the_client_raises_what_it_raises_for_the_real_hub(fake_hub, folder):
    push(fake_hub, folder)
    expected = {
        "api.model_info('tester/none')": "RepositoryNotFoundError",
        "hf_hub_download('tester/none', 'config.json')": "RepositoryNotFoundError",
        "api.upload_file(path_or_fileobj=b'', path_in_repo='a', repo_id='tester/none')": (
            "RepositoryNotFoundError"
        ),
        "hf_hub_download('tester/tiny', 'none.json')": "RemoteEntryNotFoundError",
        "hf_hub_download('tester/tiny', 'README.md', revision='none')": "RevisionNotFoundError",
        "api.create_repo('tester/tiny')": "HfHubHTTPError",
    }
    assert client(fake_hub, f"result = [error_of(call) for call in {list(expected)}]") == list(
        expected.values()
    )


def test_a_wrong_token_and_an_unknown_request_are_refused(fake_hub):
    calls = ["api.create_repo('tester/tiny')", "api.whoami()", "api.list_liked_repos('tester')"]
    code = f"result = [error_of(call, 'response.status_code') for call in {calls}]"
    assert client(fake_hub, code, HF_TOKEN="hf_wrong") == [401, 401, 501]
    assert fake_hub.repos == {}


def test_the_right_token_names_the_user(fake_hub):
    assert client(fake_hub, "result = api.whoami()['name']") == "tester"


def test_a_model_card_is_pushed_and_read(fake_hub):
    code = (
        "api.create_repo('tester/tiny')\n"
        "ModelCard('---\\nlicense: mit\\n---\\n# Tiny').push_to_hub('tester/tiny')\n"
        "result = ModelCard.load('tester/tiny').data.license"
    )
    assert client(fake_hub, code) == "mit"
    assert b"license: mit" in fake_hub.files("tester/tiny")["README.md"]
