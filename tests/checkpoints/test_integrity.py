"""Any change to a checkpoint and any cut is found, and nothing unfinished counts as one."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_pspo.checkpoints.integrity import (
    DamagedError,
    check_readable,
    check_whole,
    is_whole,
    newest_whole,
    seal,
)
from lightning_pspo.checkpoints.integrity import sealed as hashing
from lightning_pspo.checkpoints.store import checkpoint_name, find_checkpoints
from lightning_pspo.errors import InputError
from lightning_pspo.files import partial_name
from tests.support.checkpoints import flip

STATE = {"state_dict": {"weight": torch.arange(300.0)}, "loops": {"n": 3}, "text": "a" * 100}
in_one_folder = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint_name(3)
    torch.save(STATE, path)
    seal(path)
    return path


@pytest.fixture
def sealed_folder(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint_name(4)
    path.mkdir()
    (path / ".metadata").write_bytes(b"m" * 10)
    (path / "__0_0.distcp").write_bytes(bytes(range(256)))
    torch.save(STATE, path / "meta.pt")
    seal(path)
    return path


def test_a_sealed_file_is_still_what_torch_saved(sealed: Path) -> None:
    check_whole(sealed)
    check_readable(sealed)
    for mmap in (False, True):
        loaded = torch.load(sealed, mmap=mmap, weights_only=True)
        assert torch.equal(loaded["state_dict"]["weight"], STATE["state_dict"]["weight"])  # type: ignore[index]
        assert loaded["text"] == STATE["text"]


@pytest.mark.parametrize("cuts", [(), (1, 2), (2,), (3, 5)])
def test_a_checksum_computed_while_writing_is_that_of_the_file(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Wherever the last bytes are cut into pieces."""
    path, written = tmp_path / "sealed.ckpt", tmp_path / "written.ckpt"
    torch.save(STATE, path)
    content = path.read_bytes()
    seal(path)
    ends = [*(len(content) - cut for cut in reversed(cuts)), len(content)]
    with hashing(written) as file:
        for start, end in zip([0, *ends], ends, strict=False):
            file.write(content[start:end])
    assert written.read_bytes() == path.read_bytes()


@given(share=st.floats(0.0, 1.0, exclude_max=True))
@in_one_folder
def test_a_flipped_bit_anywhere_is_found(sealed: Path, share: float) -> None:
    original = sealed.read_bytes()
    in_the_seal = len(original) - int(share * 120)  # also one of its last bytes
    for bit in (int(share * 8 * len(original)), 8 * in_the_seal - 1 - in_the_seal % 8):
        flip(sealed, bit)
        with pytest.raises(DamagedError):
            check_whole(sealed)
        sealed.write_bytes(original)
    check_whole(sealed)


@given(share=st.floats(0.0, 1.0, exclude_max=True))
@in_one_folder
def test_a_file_that_is_shorter_or_longer_is_found(sealed: Path, share: float) -> None:
    original = sealed.read_bytes()
    sealed.write_bytes(original[: int(share * len(original))])
    assert not is_whole(sealed)
    sealed.write_bytes(original + b"\0")
    assert not is_whole(sealed)
    sealed.write_bytes(original)


def test_a_file_of_torch_without_a_seal_is_compared_with_its_records(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save(STATE, path)
    check_readable(path)
    flip(path, 8 * (path.read_bytes().index(torch.arange(300.0).numpy().tobytes()) + 500))
    with pytest.raises(DamagedError, match=r"record .*data/0 does not match its checksum"):
        check_whole(path)


def test_what_would_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"0" * 10_000_000)
    for name, problem in (("pipe.ckpt", "neither a file nor a folder"), ("bomb.ckpt", "its records are compressed")):
        with pytest.raises(InputError, match=f"must be a whole checkpoint, got .*{name}: .*{problem}"):
            check_readable(tmp_path / name)


def test_only_new_files_are_sealed(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    for path in (sealed, tmp_path / "text"):
        with pytest.raises(ValueError, match=r"must be a new file of torch\.save"):
            seal(path)


def cut(folder: Path) -> None:
    (folder / "__0_0.distcp").write_bytes(bytes(range(255)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json: it was not finished"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (lambda folder: (folder / ".metadata").unlink(), "its file .metadata is missing"),
        (cut, "__0_0.distcp has 255 bytes instead of 256"),
        (lambda folder: flip(folder / "__0_0.distcp"), "the content of its file __0_0.distcp does not match"),
        (lambda folder: (folder / "__1_0.distcp").write_text(""), "__1_0.distcp was not part of it"),
    ],
    ids=["no manifest", "half a manifest", "no object", "missing", "cut", "changed", "more"],
)
def test_a_damaged_folder_is_found(sealed_folder: Path, damage: Callable[[Path], None], message: str) -> None:
    check_whole(sealed_folder)
    damage(sealed_folder)
    with pytest.raises(DamagedError, match=message):
        check_whole(sealed_folder)


def test_any_flipped_bit_of_the_manifest_is_found(sealed_folder: Path) -> None:
    manifest = sealed_folder / "manifest.json"
    original = manifest.read_bytes()
    for bit in range(0, len(original) * 8, 9):
        flip(manifest, bit)
        changed = manifest.read_bytes()
        if is_whole(sealed_folder):  # white space between the entries
            assert json.loads(changed) == json.loads(original), bit
        manifest.write_bytes(original)


def test_the_newest_whole_one_is_offered(sealed: Path, sealed_folder: Path, tmp_path: Path) -> None:
    partial_name(tmp_path / checkpoint_name(9)).write_bytes(sealed.read_bytes())
    assert find_checkpoints(tmp_path) == [sealed, sealed_folder]
    assert newest_whole(tmp_path) == sealed_folder
    cut(sealed_folder)
    assert newest_whole(tmp_path) == sealed
    with pytest.raises(InputError, match=rf"255 bytes instead .*newest complete .* {sealed}\. .*: fit -c {sealed}$"):
        check_readable(sealed_folder, "fit -c {}")
    sealed.write_bytes(sealed.read_bytes()[:-1])
    assert newest_whole(tmp_path) is None
    with pytest.raises(InputError, match="There is no complete checkpoint beside it"):
        check_readable(sealed)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("state_dict", {"policy.weight": 3}, "a value of `state_dict` is not a Tensor"),
        ("callbacks", 5, "`callbacks` is not a dict"),
        ("callbacks", {"RunSummary": 7}, "a value of `callbacks` is not a dict"),
        ("MathDataModule", {"prompt": "evil"}, "`MathDataModule` has no prompt"),
        ("pytorch-lightning_version", None, "`pytorch-lightning_version` is not a version"),
        ("pytorch-lightning_version", "newest", "`pytorch-lightning_version` is not a version"),
    ],
)
def test_parts_that_someone_else_made_are_refused(tmp_path: Path, part: str, value: object, message: str) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.4"} | {part: value}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=f"must be a checkpoint of a run, got .*, in which {message}"):
        check_readable(tmp_path / "a.ckpt")


def test_lightning_reads_no_checkpoint_without_a_version(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    check_readable(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="`pytorch-lightning_version` is not a version"):
        check_readable(tmp_path / "a.ckpt", by_lightning=True)
