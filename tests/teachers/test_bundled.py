"""Bundled weights replace a missing run: they can be sampled from and distilled."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import TINY, Said, finished, refused, run_dir

import fgm.cli.evaluate
import fgm.cli.sample
from fgm.cli import export, teacher
from fgm.cli.config import compose_experiment
from fgm.cli.loading import weights_file
from fgm.cli.runs import read_yaml, write_yaml
from fgm.cli.train import known_measurements
from fgm.networks import VelocityModel
from fgm.teachers import bundled
from fgm.utils.records import write_json

ROW = {"metric": "fd", "value": 0.1, "n": 10000, "protocol": "p", "nfe": 50, "weights": "teacher"}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundle a tiny digits_fgm."""
    run = finished(tmp_path / "made", "digits_fgm", TINY)
    directory = tmp_path / "bundled"
    directory.mkdir()
    state = load_file(run_dir(run) / "generator.safetensors")
    save_file({k: w.bfloat16() for k, w in state.items()}, directory / "digits_fgm.safetensors")
    config = read_yaml(run_dir(run) / "config.yaml")
    content = {"config": config | {"method": config["method"] | {"guidance": 1.0}}, "row": {"results": [ROW]}}
    (directory / "digits_fgm.json").write_text(json.dumps(content))
    monkeypatch.setattr(bundled, "DIRECTORY", directory)
    return directory


def test_sampling_without_a_run_uses_bundled_weights(
    weights: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    fgm.cli.sample.main(["experiment=digits_fgm", f"outputs={tmp_path}", "n=4", f"out={tmp_path / 'drawn.png'}"])
    said = capsys.readouterr().out
    assert "holds no finished run: taking the weights that come with the suite (digits_fgm)" in said
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    other = ["experiment=digits_fgm", "seed=7", f"outputs={tmp_path}"]
    assert "holds no finished run: make train" in refused(fgm.cli.sample.main, other, capsys, monkeypatch)


def test_bundled_teacher_has_its_weights_and_known_measurements(weights: Path) -> None:
    net = teacher.from_bundled("digits_fgm")
    state = load_file(weights / "digits_fgm.safetensors")
    assert all(torch.equal(net.state_dict()[name], tensor.float()) for name, tensor in state.items())
    assert all(tensor.dtype == torch.float32 for tensor in net.state_dict().values())
    small = [setting for setting in TINY if setting.startswith("evaluation")]
    config = compose_experiment("digits_fgm", ["teacher=bundled", "teacher.experiment=digits_fgm", *small])
    assert [m.value for m in known_measurements(config)] == [0.1]
    assert known_measurements(config | {"evaluation": config["evaluation"] | {"seed": 9}}) == []
    assert known_measurements(config | {"teacher": config["teacher"] | {"guidance": 3.0}}) == []
    assert known_measurements(config | {"method": {"null_share": 0.1}}) == []


def test_measurements_of_a_run_without_guidance_count_for_no_guidance(tmp_path: Path) -> None:
    config = compose_experiment("digits_fgm", [f"outputs={tmp_path}"])
    own = compose_experiment("digits_teacher", [f"outputs={tmp_path}"])
    assert "guidance" not in own["method"]
    Path(own["run_dir"]).mkdir(parents=True)
    write_yaml(own, Path(own["run_dir"]) / "config.yaml")
    write_json(Path(own["run_dir"]) / "results.json", {"results": [ROW]})
    assert [m.value for m in known_measurements(config)] == [0.1]
    assert known_measurements(config | {"teacher": config["teacher"] | {"guidance": 3.0}}) == []


def test_unknown_bundled_recipe_is_a_user_error(weights: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(arguments: list[str]) -> None:
        teacher.require(compose_experiment("digits_fgm", arguments)["teacher"])

    line = refused(require, ["teacher=bundled", "teacher.experiment=digits"], capsys, monkeypatch)
    assert "no such weights come with the suite; did you mean digits_fgm?" in line


def test_bundling_rounds_and_measures_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    run = finished(tmp_path, "digits_fgm", TINY)
    monkeypatch.setattr(bundled, "DIRECTORY", tmp_path)
    missing = refused(export.bundle, ["experiment=digits_fgm", f"outputs={tmp_path / 'none'}"], capsys, monkeypatch)
    assert "holds no finished run" in missing
    write_json(run_dir(run) / "results.json", {"commit": "abc", "results": []})
    export.bundle(run)
    file, content = bundled.weights("digits_fgm"), bundled.run("digits_fgm")
    trained, rounded = load_file(run_dir(run) / "generator.safetensors"), load_file(file)
    assert all(torch.equal(rounded[name], w.bfloat16()) for name, w in trained.items())
    assert content["sha256"] == sha256(file.read_bytes()).hexdigest() and content["row"]["commit"] == "abc"
    values = {m["metric"]: (m["value"], m["n"]) for m in content["row"]["results"]}
    save_file({name: w.float() for name, w in rounded.items()}, run_dir(run) / "generator.safetensors")
    fgm.cli.evaluate.main(run)
    (measured,) = (run_dir(run) / "evaluation").glob("*/results.json")
    again = json.loads(measured.read_text())["results"]
    assert values["fd"][1] == 60
    assert values == {m["metric"]: (m["value"], m["n"]) for m in again if m["weights"] == "ema"}


def test_interrupted_bundling_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: dict) -> list:
        raise KeyboardInterrupt

    run = finished(tmp_path, "digits_fgm", TINY)
    monkeypatch.setattr(bundled, "DIRECTORY", tmp_path)
    monkeypatch.setattr(export, "measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.bundle(run)
    assert not bundled.names()


def test_weights_too_large_for_a_repository_are_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    run = finished(tmp_path, "digits_fgm", TINY)
    monkeypatch.setattr(bundled, "DIRECTORY", tmp_path)
    monkeypatch.setattr(export, "LARGEST", 1000)
    assert "at most 8 MB come with the suite" in refused(export.bundle, run, capsys, monkeypatch)
    assert not bundled.names()


@pytest.mark.parametrize("experiment", bundled.names())
def test_bundled_file_is_the_one_that_was_measured(experiment: str) -> None:
    content, file = bundled.run(experiment), bundled.weights(experiment)
    assert content["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert content["row"]["experiment"] == content["config"]["experiment"] == experiment and content["row"]["results"]
    assert file.stat().st_size <= export.LARGEST and f"| {file.name} |" in (file.parent / "README.md").read_text()
    net = teacher.from_bundled(experiment)
    assert {w.dtype for w in load_file(file).values()} == {torch.bfloat16}
    assert sum(w.numel() for w in net.parameters()) > 0


def test_weights_of_a_run_are_those_that_its_method_exports(tmp_path: Path) -> None:
    """Also if there is another file, or none."""
    (tmp_path / "teacher.safetensors").touch()
    for experiment, name in (("digits_fgm", "generator.safetensors"), ("digits_teacher", "teacher.safetensors")):
        assert weights_file(compose_experiment(experiment, [f"run_dir={tmp_path}"])) == tmp_path / name


OUTPUTS = {
    "shapes_fgm": (-0.0025136438702, 1.7171777776226),
    "shapes_teacher_tuned": (-0.0316630348300, 1.9824423819461),
}


def moments(net: VelocityModel, nudge: float = 0.0) -> torch.Tensor:
    """Mean and standard deviation of v in float64, at times that are moved by a share of themselves."""
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, 3, 32, 32, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64) * (1 + nudge)
    with torch.no_grad():
        v = net(x_t, t, torch.randint(0, 35, (2, 12), generator=rng))
    return torch.stack([v.mean(), v.std()])


@pytest.mark.parametrize("experiment", OUTPUTS)
def test_bundled_network_has_the_output_of_its_measurement(experiment: str) -> None:
    """As recorded when the weights were added, up to what the last place of t does: its features are float32."""
    net = teacher.from_bundled(experiment).double()
    ours, recorded = moments(net), torch.tensor(OUTPUTS[experiment], dtype=torch.float64)
    rounding = torch.stack([(moments(net, nudge) - ours).abs() for nudge in (2**-23, -(2**-23))]).amax(0)
    assert (rounding < 2e-7).all() and ((ours - recorded).abs() <= rounding).all()
