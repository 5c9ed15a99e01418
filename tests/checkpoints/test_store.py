"""Names of checkpoints, and the list of the best."""

from pathlib import Path

from lightning_pspo.checkpoints.store import checkpoint_name, find_damaged, read_scores, set_aside, write_scores

HUGE = '{"mode": "max", "scores": {"3": 1' + "0" * 400 + "}}"


def test_scores_are_of_existing_checkpoints(tmp_path: Path) -> None:
    for rollout in (3, 4):
        (tmp_path / checkpoint_name(rollout)).touch()
    write_scores(tmp_path, "val/a/accuracy", "max", {3: 0.25, 4: 0.5, 5: 0.75})
    assert list(read_scores(tmp_path).items()) == [(4, 0.5), (3, 0.25)]
    write_scores(tmp_path, "val/loss", "min", {3: 0.25, 4: 0.5})
    assert list(read_scores(tmp_path, "val/loss", "min")) == [3, 4]
    assert read_scores(tmp_path, "val/loss", "max") == read_scores(tmp_path, "val/other", "min") == {}
    for content in ("", "[]", '{"mode": "max", "scores": {"x": 1}}', '{"mode": "max", "scores": 3}', HUGE):
        (tmp_path / "best.json").write_text(content)
        assert read_scores(tmp_path) == {}


def test_damaged_checkpoints_are_set_aside(tmp_path: Path) -> None:
    paths = [tmp_path / checkpoint_name(rollout) for rollout in (3, 4)]
    paths[0].touch()
    paths[1].mkdir()
    for path in paths:
        (path.with_name(f"{path.name}.damaged")).mkdir()  # of an earlier time
        set_aside(path)
        assert not path.exists()
    (tmp_path / "rollout=best.ckpt.damaged").touch()  # someone else's
    assert [path.name for path in find_damaged(tmp_path, before=4)] == ["rollout=000003.ckpt.damaged"]
    assert find_damaged(tmp_path, before=4)[0].is_file()
