"""A whole run from Python, on arrays in memory: sweep, select, evaluate, ship, load."""

import tempfile
from pathlib import Path

import numpy as np

import flaxhead as fh

rng = np.random.default_rng(0)
names = np.array(["ant", "bee", "cat"])[rng.integers(3, size=600)]
centres = {name: rng.normal(size=32) for name in ("ant", "bee", "cat")}
embeddings = np.stack([centres[name] for name in names])
embeddings = (embeddings + rng.normal(size=(600, 32))).astype(np.float32)

# Splits val and test off.
data = fh.arrays({"embeddings": embeddings, "labels": names})
config = fh.Config(
    heads=(fh.HeadConfig("linear"), fh.HeadConfig("cosine", normalization="l2")),
    optimizer=fh.OptimizerConfig(learning_rate=(0.001, 0.01, 0.1)),
    train=fh.TrainConfig(epochs=10),
)
with tempfile.TemporaryDirectory() as folder:
    result = fh.run(config, Path(folder) / "RUN", data=data)
    head = fh.load(Path(folder) / "RUN" / "head")

won, test = result["selected"], result["test"]
print(f"{won['head']} at learning rate {won['hyperparameters']['learning_rate']:g} won")
low, high = test["accuracy_ci"]
print(f"test accuracy {test['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f})")
classes = head.predict(data.test.x[:5])
print("predicted:", [head.class_names[one] for one in classes])
print("labelled: ", [head.class_names[one] for one in data.test.labels[:5]])
