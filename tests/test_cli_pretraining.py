"""`tfmeta train --pretrain-epochs` and `--network`: what is trained, and what goes on."""

import dataclasses
import json
import os
import re
import signal

import numpy as np
import pytest

from tests.test_cli import TINY, refused, tfmeta, write_images
from tfmeta import pretraining, run_data, training
from tfmeta.cli.settings import filters_of
from tfmeta.models import BACKBONES
from tfmeta.runs import Run
from tfmeta.states import newest

BOTH = (*TINY, "-a", "fomaml", "--pretrain-epochs", "2", "--epochs", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "photos", 10)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    output = tfmeta("train", photos, *BOTH, "--save-every", 1, "--output", path).output
    assert "Pretraining conv4 as a classifier of 6 classes" in output
    return path


def test_a_run_knows_of_its_pretraining(whole):
    run = Run(whole)
    settings = run.settings()
    assert (settings.network, settings.pretrain_epochs, settings.filters) == ("conv4", 2, 4)
    # 30 images of 6 classes in batches of 30: a step an epoch.
    assert newest(run.pretraining).step == 2
    assert len(run.history()) == 1
    # The inner learning rate is what suits the network that was pretrained.
    parts = run_data.load_data(settings)
    network = training.pretrained(settings, run, parts, verbose=False)
    found = training.with_suggested_rate(settings, parts, network, verbose=False)
    assert found == settings


def test_it_goes_on_wherever_it_was_interrupted(whole, photos, tmp_path, monkeypatch):
    path = tmp_path / "run"
    command = ("train", photos, *BOTH, "--save-every", 1, "--output", path)

    def end(self, batch, logs=None):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining._Watch, "on_train_batch_end", end)
        output = tfmeta(*command, code=128 + signal.SIGTERM).output
    assert "the state after step 1 of pretraining, and no model yet" in output
    assert "The same command with --resume goes on from there." in output
    assert Run(path).settings().inner_learning_rate is None

    def interrupt(self, epoch, logs=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, "on_epoch_begin", interrupt)
        output = tfmeta(*command, "--resume", code=130).output
    assert "the state after step 2 of pretraining, and no model yet" in output
    begun = newest(Run(path).pretraining).path.read_bytes()
    assert Run(path).settings() == Run(whole).settings()
    output = tfmeta(*command, "--resume").output
    assert "Inner learning rate" not in output
    assert newest(Run(path).pretraining).path.read_bytes() == begun
    assert Run(path).history_file.read_bytes() == Run(whole).history_file.read_bytes()
    pairs = zip(Run(path).learner().weights, Run(whole).learner().weights, strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert "`pretrain_epochs` must be 2" in refused(*command, "--resume", "--pretrain-epochs", 3)
    # To begin anew is to begin with the pretraining, and to have none is to have no files of it.
    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, "on_epoch_begin", interrupt)
        tfmeta(*command, "--overwrite", "--pretrain-epochs", 0, code=130)
    assert not Run(path).pretraining.exists()


def test_the_learner_begins_where_the_pretraining_ended(whole, tmp_path):
    run = Run(whole)
    parts = run_data.load_data(run.settings())
    for algorithm, outputs in (("prototypical", 0), ("maml++", 2)):
        settings = dataclasses.replace(run.settings(), algorithm=algorithm)
        begun = training.pretrained(settings, run, parts, verbose=False)
        network = begun.whole
        fresh = training.new_network(settings, parts[0].example_shape).whole
        same = [np.array_equal(a, b) for a, b in zip(network.weights, fresh.weights, strict=True)]
        # A head of the learner's own is as it would be; the rest is the same for all of them.
        encoder = network.weights[: len(same) - outputs]
        assert same[len(encoder) :] == [True] * outputs
        assert not any(x for w, x in zip(encoder, same, strict=False) if len(w.shape) == 4)
        learner = training.new_learner(settings, parts[0].example_shape, begun)
        kernels = {w.numpy().tobytes() for w in encoder if len(w.shape) == 4}
        assert kernels <= {w.numpy().tobytes() for w in learner.model.weights}


def test_a_run_of_before_there_were_networks_is_read(whole, tmp_path):
    values = json.loads((whole / "settings.json").read_text())
    del values["network"], values["pretrain_epochs"]
    (tmp_path / "settings.json").write_text(json.dumps(values))
    settings = Run(tmp_path).settings()
    assert (settings.network, settings.pretrain_epochs) == ("conv4", 0)


def test_networks_of_the_command_are_the_backbones(whole):
    settings = Run(whole).settings()
    for name in BACKBONES:
        chosen = dataclasses.replace(settings, network=name, filters=2, algorithm="maml")
        model = training.new_network(chosen, (16, 16, 3)).whole
        assert (model.name, model.output_shape) == (name, (None, settings.ways))
        assert f"{filters_of(name)} for {name}" in " ".join(
            tfmeta("train", "--help").output.split()
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--network", "resnet21"), "'resnet21' is none of conv4, resnet12.*Did you mean 'resnet"),
        (("--network", "resnet12"), "--downsample is for conv4, not for 'resnet12'"),
        (("--pretrain-epochs", "-1"), "is not in the range x>=0"),
        (("--pretrain-epochs", "1", "--workers", "2"), "`pretrain_epochs` must be 0 with several"),
    ],
)
def test_bad_options(photos, tmp_path, arguments, message):
    output = refused("train", photos, *TINY, "--output", tmp_path / "run", *arguments)
    assert re.search(message, output), output
    assert not (tmp_path / "run").exists()


def test_downsample_of_another_network_is_not_searched(photos, tmp_path):
    arguments = ("--network", "resnet12", "--search", "downsample=pool,stride")
    output = refused("tune", photos, "--output", tmp_path / "run", *arguments)
    assert "--search downsample is for conv4, not for 'resnet12'" in output
