"""Buckets: data from one, a run in one, a head out of one, as from a local folder."""

import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_gcs import FakeStore
from safetensors.numpy import save_file

import flaxhead as fh
import train
from flaxhead import cli, paths
from flaxhead.data import fingerprint, load
from flaxhead.loop import Interrupted, run
from flaxhead.report.progress import quiet


@pytest.fixture(scope="module")
def store():
    store = FakeStore("lab-bucket", "read-only", "denied")
    store.denied, store.read_only = {"denied"}, {"read-only"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", store.url)  # of gcsfs and Google's client
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", store.url)
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield store
    store.close()


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    """A local folder of data in every format, and the same in the bucket."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 5)).astype(np.float32)
    labels = (x[:, :3] + rng.normal(size=(120, 3))).argmax(1)
    np.savez(folder / "train.npz", embeddings=x, labels=labels)
    np.save(folder / "train_embeddings.npy", x)
    np.save(folder / "train_labels.npy", labels)
    arrays = {"embeddings": x, "labels": labels}
    save_file(arrays, folder / "train.safetensors")
    table = {"embedding": list(x), "label": labels}
    (folder / "train").mkdir()
    for number, rows in enumerate((slice(0, 70), slice(70, 120))):
        part = {name: column[rows] for name, column in table.items()}
        pq.write_table(pa.table(part), folder / f"train/{number}.parquet")
    for file in folder.rglob("*.*"):
        if file.is_file():
            place = paths.to_path("gs://lab-bucket/data") / file.relative_to(folder)
            paths.write(place, file.read_bytes())
    return folder


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors", "parquet"])
def test_data_of_a_bucket_are_those_of_a_folder(folder, kind):
    local, remote = (
        load(fh.DataConfig(f"{kind}:{place}"))
        for place in (folder, "gs://lab-bucket/data")
    )
    assert fingerprint(remote) == fingerprint(local)


def settings(source):
    return fh.Config(
        fh.DataConfig(source),
        heads=(fh.HeadConfig("linear", dropout=(0.5,)),),
        train=fh.TrainConfig(batch_size=16, steps=160, evaluations=5, devices=1),
        checkpoint=fh.CheckpointConfig(every_seconds=0.0),
    )


def outcome(workdir):
    result = json.loads((workdir / "result.json").read_text())
    del result["timing"]
    params = (workdir / "head" / "params.safetensors").read_bytes()
    return result, params, (workdir / "metrics.jsonl").read_text()


def test_a_run_in_a_bucket_stops_resumes_and_is_the_local_one(store, folder, tmp_path):
    run(settings(f"npz:{folder}"), tmp_path / "run")
    config, address = settings("npz:gs://lab-bucket/data"), "gs://lab-bucket/runs/one"
    store.write("lab-bucket", "runs/one/", b"", {})  # A folder that was made by hand.
    said = []

    def stop(step, *_):
        if step >= 64:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"--workdir={address} goes on"):
        run(config, address, display=quiet()._replace(step=stop))
    # As if it had been killed while it wrote the last one.
    steps = {
        int(name.split("/")[3])
        for name in store.names("lab-bucket")
        if name.startswith("runs/one/checkpoints/")
    }
    last = f"runs/one/checkpoints/{max(steps)}/commit_success.txt"
    store.delete("lab-bucket", last, {})
    run(config, address, display=quiet()._replace(say=said.append))
    assert f"resumed after step {max(steps - {max(steps)})}" in said
    workdir = paths.to_path(address)
    assert outcome(workdir) == outcome(tmp_path / "run")
    assert (workdir / "curves.png").read_bytes()[1:4] == b"PNG"
    run(config, address, display=quiet()._replace(say=said.append))
    assert said[-1] == f"{address} holds the finished run; nothing to do"
    other = dataclasses.replace(config, train=fh.TrainConfig(batch_size=8))
    before = dict(store.objects)
    with pytest.raises(ValueError, match=r"batch_size \(16 there, 8 now\)"):
        run(other, address)
    assert store.objects == before

    head, local = fh.load(f"{address}/head"), fh.load(tmp_path / "run" / "head")
    x = np.load(folder / "train_embeddings.npy")
    np.testing.assert_array_equal(head.logits(x), local.logits(x))
    tables = []
    for number, run_folder in enumerate((address, tmp_path / "run")):
        output = tmp_path / f"{number}.csv"
        flags = ["predict", "--head", f"{run_folder}/head", f"--output={output}"]
        assert cli.main([*flags, f"--input={folder}/train_embeddings.npy"]) == 0
        tables.append(output.read_text())
    assert tables[0] == tables[1]
    assert len(tables[0].splitlines()) == 121


@pytest.mark.parametrize("which", ["inputs", "output"])
def test_bulk_scores_stay_on_the_machine(folder, tmp_path, which):
    at = {"inputs": folder / "train_embeddings.npy", "output": tmp_path / "scores.npy"}
    at[which] = f"gs://lab-bucket/{at[which].name}"
    head = fh.fit(np.eye(4), [0, 0, 1, 1], heads="nearest_mean", folds=2)
    with pytest.raises(ValueError, match=f"^{which} gs:/.* copy to and from a bucket"):
        fh.predict_files(head, at["inputs"], at["output"])


def test_of_two_that_claim_a_folder_one_gets_it(store):
    path, lost = paths.to_path("gs://lab-bucket/runs/race/config.json"), []
    together = threading.Barrier(8)

    def claim(number):
        together.wait()
        try:
            paths.write(path, str(number), new=True)
        except ValueError as error:
            lost.append((str(number), str(error)))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    assert path.read_text() not in dict(lost)
    assert all("another run wrote it a moment ago" in why for _, why in lost)


DATA, NEW = "npz:gs://lab-bucket/data", "gs://lab-bucket/runs/new"


@pytest.mark.parametrize(
    ("source", "workdir", "sentence"),
    [
        (DATA, "gs://nowhere/run", "gs://nowhere/run: there is no such bucket"),
        (DATA, "gs://denied/run", "Forbidden"),
        (DATA, "gs://read-only/run", "no storage.objects.create access"),
        (DATA, "s3://lab-bucket/run", "expected a local path, or gs://BUCKET/FOLDER"),
        ("npz:gs://nowhere/data", NEW, "gs://nowhere/data: there is no such bucket"),
        ("npz:gs://denied/data", NEW, "Forbidden"),
        ("npz:gs://lab-bucket/no", NEW, "gs://lab-bucket/no: is not there"),
        ("tfds:x?data_dir=gs://lab-bucket", NEW, "expected a copy there"),
    ],
)
def test_what_a_bucket_refuses_is_one_sentence(
    store, folder, source, workdir, sentence, capsys
):
    before = dict(store.objects)
    with pytest.raises(SystemExit) as stopped:
        train.main([f"--config.data.source={source}", f"--workdir={workdir}"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert store.objects == before


def test_without_the_extra_a_bucket_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'flaxhead\[gcs\]'"):
        fh.load("gs://lab-bucket/head")


def test_a_head_that_is_not_there(store):
    with pytest.raises(ValueError, match=r"no/head.json is missing; expected"):
        fh.load("gs://lab-bucket/no")
