"""What services are asked for, in both ways of writing it, and what is refused."""

import pytest

from vlmrun.checks import rules
from vlmrun.config.schema import services


def refused(run):
    return {(problem.where, problem.fix) for problem in rules.check(run) if problem.where.startswith("tracking")}


def test_a_list_and_a_mapping_say_the_same(smoke):
    listed, mapped = smoke("tracking=[wandb,tensorboard]"), smoke("tracking={wandb: {}, tensorboard: null}")
    assert services(listed.tracking) == services(mapped.tracking)
    assert services(smoke().tracking) == {}
    assert services(smoke("tracking=[wandb_online]").tracking)["wandb"].mode == "online"
    assert refused(mapped) == set()


def test_a_mapping_replaces_a_list_of_the_recipe(smoke):
    run = smoke("tracking=[wandb]", "tracking={wandb: {project: p, group: g, tags: [a], mode: online}}")
    assert services(run.tracking)["wandb"].project == "p"


def test_what_a_service_has_no_place_for_is_refused(smoke):
    found = refused(smoke("tracking={tensorboard: {project: p}, wandb: {entity: team}}"))
    assert found == {("tracking.tensorboard.project", "leave it out; tensorboard takes no values")}


@pytest.mark.parametrize(("name", "package"), [("mlflow", "mlflow"), ("comet", "comet-ml"), ("aim", "aim")])
def test_a_service_that_is_not_installed_is_refused_with_the_command(smoke, monkeypatch, name, package):
    monkeypatch.setattr("vlmrun.checks.tracking.find_spec", lambda module: None)
    assert refused(smoke(f"tracking=[{name}]")) == {(f"tracking.{name}", f"pip install {package}")}
