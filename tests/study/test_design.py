"""What a study file may say, and what it spans."""

from pathlib import Path

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.study.design import read_study

GOOD = """
config: [quickstart]
settings: {data.num_rollouts: 4}
arms:
  plain:
  soft: {settings: {surrogate: PSPO}, grid: {surrogate.alpha: [0.1, 0.4]}}
grid: {updates_per_rollout: [1, 4]}
seeds: [1, 2]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_arms_at_every_point_of_the_grid(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GOOD))
    assert [variant.name for variant in study.variants()] == [
        f"{arm}/updates_per_rollout={mu}" for mu in (1, 4) for arm in ("plain", "soft@alpha=0.1", "soft@alpha=0.4")
    ]
    last = study.variants()[-1]
    assert last.settings == {
        "data.num_rollouts": 4,
        "model.updates_per_rollout": 4,
        "model.surrogate": "PSPO",
        "model.surrogate.alpha": 0.4,
    }
    assert study.control_arm == "plain"
    assert study.title == "study"


def test_points_are_named_and_span_the_grid(tmp_path: Path) -> None:
    points = "points: {usual: {}, hot: {optimizer.init_args.lr: 0.1, updates_per_rollout: 9}}\n"
    study = read_study(write(tmp_path, GOOD + points))
    names = [variant.point for variant in study.variants() if variant.arm == "plain"]
    assert names == [f"{point},updates_per_rollout={mu}" for point in ("usual", "hot") for mu in (1, 4)]
    assert study.variants()[-1].settings["model.optimizer.init_args.lr"] == 0.1
    assert study.variants()[-1].settings["model.updates_per_rollout"] == 4
    study = read_study(
        write(tmp_path, GOOD.replace("grid: {updates", "points: {once: {updates").replace("[1, 4]}", "1}}"))
    )
    assert next(variant.name for variant in study.variants()) == "plain/once"


def test_values_are_named_with_their_signs_and_dates_are_texts(tmp_path: Path) -> None:
    text = GOOD.replace("[1, 4]}", "[-1, 1, 2026-01-01, [-0.5, x]]}")
    points = {
        variant.point: variant.settings["model.updates_per_rollout"]
        for variant in read_study(write(tmp_path, text)).variants()
    }
    names = [f"updates_per_rollout={name}" for name in ("-1", "1", "2026-01-01", "0.5-x")]
    assert points == dict(zip(names, (-1, 1, "2026-01-01", [-0.5, "x"]), strict=True))
    text = GOOD + "search: {setting: lr, seeds: [3], low: 1e-5, high: 1, trials: 2}\n"
    search = read_study(write(tmp_path, text)).search
    assert search is not None
    assert (search.low, search.high) == (1e-5, 1.0), "YAML takes the first for a text"


def test_the_settings_of_an_arm_win(tmp_path: Path) -> None:
    text = GOOD.replace("plain:", "plain: {settings: {data.num_rollouts: 9}}")
    assert read_study(write(tmp_path, text)).variants()[0].settings["data.num_rollouts"] == 9


def test_a_file_may_build_on_another(tmp_path: Path) -> None:
    (tmp_path / "main.yaml").write_text(GOOD, encoding="utf-8")
    study = read_study(
        write(tmp_path, "base: main\ntitle: axis\nsettings: {data.date: x}\ngrid: {kl.coef: [0.0, 0.1]}\n")
    )
    assert (study.title, study.seeds, study.grid) == ("axis", (1, 2), {"model.kl.coef": [0.0, 0.1]})
    assert study.settings == {"data.num_rollouts": 4, "data.date": "x"}
    again = "base: main.yaml\nsettings: {model.group_size: 2, data.num_rollouts: 8}\n"
    (tmp_path / "main.yaml").write_text(GOOD.replace("{data.n", "{group_size: 9, data.n"), encoding="utf-8")
    assert read_study(write(tmp_path, again)).settings == {"model.group_size": 2, "data.num_rollouts": 8}
    (tmp_path / "main.yaml").write_text("base: study\n" + GOOD, encoding="utf-8")
    with pytest.raises(InputError, match=r"main.yaml: unknown key `base`"):
        read_study(tmp_path / "study.yaml")
    with pytest.raises(InputError, match=r"gone.yaml cannot be read"):
        read_study(write(tmp_path, "base: gone\n"))


def test_configurations_beside_the_file_come_first(tmp_path: Path) -> None:
    (tmp_path / "quickstart").write_text("{}", encoding="utf-8")
    assert read_study(write(tmp_path, GOOD)).config == (str(tmp_path / "quickstart"),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2]", "seeds: [1, 1]", "`seeds` must be a list of different integers"),
        ("seeds: [1, 2]", "", "`seeds` must be a list of different integers"),
        ("seeds: [1, 2]", "sead: [1]", "unknown key `sead`"),
        ("  plain:", "  a/b:", "`arms` must be names"),
        ("  plain:", "  plain: {confg: x}", "unknown key `arms.plain.confg`"),
        ("updates_per_rollout: [1, 4]", "updates_per_rollout: 4", "`grid.model.updates_per_rollout` must be a list"),
        ("[0.1, 0.4]", "[0.1, 0.1]", "a name of its own, got soft@alpha=0.1/"),
        ("seeds:", "control: pspo\nseeds:", "`control` must be one of the arms plain, soft"),
        ("seeds:", "points: {a/b: {}}\nseeds:", "`points` must be names of letters"),
        ("seeds:", "points: {a: 3}\nseeds:", "`points.a` must be a mapping"),
        ("seeds:", "threads: 0\nseeds:", "`threads` must be an integer from 1"),
        ("seeds:", "keep_checkpoints: 0\nseeds:", "`keep_checkpoints` must be true or false, got 0"),
        ("seeds:", "search: {setting: x, seeds: [2]}\nseeds:", "other seeds than those reported"),
        ("seeds:", "search: {setting: x, seeds: [3], low: 2, high: 1}\nseeds:", "0 < low < high"),
        ("seeds:", "search: {setting: x, seeds: [3], low: 1, high: 2}\nseeds:", "`search.trials` must be an integer"),
        ("seeds:", "search: {setting: x, seeds: [3], values: [1], low: 1}\nseeds:", "`search.values` must be a list"),
        ("seeds:", "search: {setting: x, seeds: [3], low: 1, high: .inf}\nseeds:", "0 < low < high"),
        ("seeds:", "search: {setting: x, seeds: [3], low: fast, high: 2}\nseeds:", "`search.low` must be a number"),
        ("seeds:", "search: {setting: x, seeds: [3], low: true, high: 2}\nseeds:", "`search.low` must be a number"),
        ("seeds:", "search: {setting: seed_everything, seeds: [3], values: [1]}\nseeds:", "another one than the seed"),
        ("config:", 'title: "two\\nlines"\nconfig:', "`title` must be a text of one line"),
        ("{data.num_rollouts: 4}", "{kl.coef: 0, model.kl.coef: 1}", "each setting once, got 'model.kl.coef twice'"),
        ("{data.num_rollouts: 4}", "{data.x: {2026-01-01: 1}}", "`settings.data.x` must be made of texts, numbers"),
        ("[1, 4]}", f"[1, 4], {'a' * 80}: [{'b' * 60}], {'c' * 60}: [1]}}", "a name of at most 200 characters"),
        ("data.num_rollouts: 4", "seed_everything: 4", "list the seeds under `seeds`"),
        ("seeds:", f"search: {{setting: x, seeds: [3], low: {10**400}, high: 2}}\nseeds:", "must be a number"),
        ("[1, 4]}", "[1, 4], " + ", ".join(f"s{i}: {[*range(99)]}" for i in range(9)) + "}", "at most 100,000 cells"),
    ],
    ids=lambda text: text[:30],
)
def test_what_a_file_must_not_say(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_study(write(tmp_path, GOOD.replace(old, new))).variants()
    assert message in str(refusal.value)
