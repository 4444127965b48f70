"""The folder of model files: named by content, whole or absent, and deleted again with a refusal."""

from hashlib import sha256
from pathlib import Path

import pytest

from strategy_core.domain.errors import DuplicateVersion, InvalidSetting
from strategy_core.store.model_store import ModelStore

CONTENT = b'{"w1": []}\n'
NAME = f"{sha256(CONTENT).hexdigest()}.json"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "a" / "models")


def files(store: ModelStore) -> list[str]:
    return sorted(each.name for each in store.folder.iterdir() if each.name != ".lock")


def test_the_same_content_is_one_file_that_nobody_may_write(store: ModelStore) -> None:
    for _ in range(2):
        with store.added(CONTENT) as file:
            assert file.read_bytes() == CONTENT

    assert files(store) == [NAME]
    assert file.stat().st_mode & 0o777 == 0o444


def test_a_file_goes_with_the_refusal_of_its_version(store: ModelStore) -> None:
    with pytest.raises(DuplicateVersion), store.added(CONTENT):
        raise DuplicateVersion("ppo_gold", "2")

    assert files(store) == []


def test_a_file_that_was_there_before_or_may_be_registered_stays(store: ModelStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.added(CONTENT):
        raise KeyboardInterrupt

    with pytest.raises(DuplicateVersion), store.added(CONTENT):
        raise DuplicateVersion("ppo_gold", "2")

    assert files(store) == [NAME]


def test_a_damaged_file_is_written_again(store: ModelStore) -> None:
    with store.added(CONTENT) as file:
        pass
    file.chmod(0o644)
    file.write_bytes(b"exchanged")

    with store.added(CONTENT):
        pass

    assert file.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidSetting, match=r"ROLLOUT_MODELS = .* a folder in which files can be written"):
        ModelStore(tmp_path / "file" / "models").open()


def test_a_write_that_fails_leaves_nothing(store: ModelStore) -> None:
    store.open()
    store.path(CONTENT).mkdir()

    with pytest.raises(OSError, match=NAME), store.added(CONTENT):
        pass

    assert files(store) == [NAME], "the folder in its place, and no draft"
