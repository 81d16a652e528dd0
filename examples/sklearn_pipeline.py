"""A head as a scikit-learn classifier: grid search, calibration, weights, parts."""

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flaxhead.sklearn import HeadClassifier

x, labels = load_digits(return_X_y=True)
y = np.array(["even", "odd"])[labels % 2]
train_x, test_x, train_y, test_y = train_test_split(x, y, random_state=0)

auto = HeadClassifier().fit(train_x, train_y)  # What head, and how strongly penalised?
accuracy = auto.score(test_x, test_y)
print(f"{auto.head_.name} won of {len(auto.candidates_)}: accuracy {accuracy:.3f}")

pipeline = make_pipeline(StandardScaler(), HeadClassifier("logistic"))
grid = {"headclassifier__C": [0.001, 0.01, 0.1]}  # One compiled program for all.
search = GridSearchCV(pipeline, grid, cv=3).fit(train_x, train_y)
chosen = search.best_params_["headclassifier__C"]
print(f"logistic of C {chosen}: accuracy {search.score(test_x, test_y):.3f}")

ridge = CalibratedClassifierCV(HeadClassifier("ridge"), cv=3).fit(train_x, train_y)
odd = ridge.predict_proba(test_x)[:, 1].mean(), np.mean(test_y == "odd")
print(f"odd: {odd[0]:.2f} by calibrated ridge, {odd[1]:.2f} by the labels")

stream = HeadClassifier("lda", shrinkage=0.1)  # Rows, and classes, that come later.
for part in np.array_split(np.arange(len(train_x)), 4):
    stream.partial_fit(train_x[part], train_y[part])
whole = HeadClassifier("lda", shrinkage=0.1).fit(train_x, train_y)
same = np.array_equal(stream.predict(test_x), whole.predict(test_x))
print(f"in four parts as in one: {same}")
