"""Factorizations from the command line and in Python: files, predictions, recommendations, what training had not."""

import lzma

import numpy as np
import pytest
from command import fails, own_cache, run  # noqa: F401
from scipy.sparse import csr_array

import hogwild
from hogwild import MatrixFactorization
from hogwild.data import ratings
from hogwild.errors import UserError
from hogwild.experiments.plan import published
from hogwild.families.mf_cold_start import fold_in
from hogwild.training import model_files


def planted(rng, n_users=60, n_items=40, share=0.6, rank=2):
    """(users, items, ratings) of planted factors, and the whole matrix."""
    z = 3 + rng.standard_normal((n_users, rank)) @ rng.standard_normal((rank, n_items)) + 0.5 * rng.standard_normal(n_items)
    users, items = np.nonzero(rng.random(z.shape) < share)
    return (users, items, z[users, items]), z


@pytest.fixture(scope="module")
def fitted():
    known, z = planted(np.random.default_rng(0))
    return MatrixFactorization(rank=4, epochs=80, workers=1, l2=0.01, verbose=-1).fit(known), known, z


@pytest.fixture
def file(tmp_path):
    (users, items, values), _ = planted(np.random.default_rng(1))
    path = tmp_path / "r.csv.xz"
    text = "".join(f"u{u},i{i},{x:.3f},{t}\n" for t, u, i, x in zip(np.random.default_rng(0).permutation(len(users)), users,
                                                                    items, values))
    path.write_bytes(lzma.compress(text.encode()))
    return path


def out(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 0
    return capsys.readouterr()


def test_the_commands_agree_with_python(file, capsys):
    train = "train", "mf", file, "--rank", 4, "--workers", 1, "--epochs", 3, "--leave-last-out", "--model", "m"
    said = out(capsys, *train).out
    assert "held out: 60" in said and "rmse" in said and "columns" not in said
    model, data = hogwild.load("m"), ratings.read(file)
    users, items = data.user_ids.values[data.users], data.item_ids.values[data.items]
    z = model.predict(users, items)
    places = [[ids.tolist().index(x) for x in each] for ids, each in ((model.user_ids_, users), (model.item_ids_, items))]
    want = model.mean_ + model.user_biases_[places[0]] + model.item_biases_[places[1]] + (
        model.user_factors_[places[0]] * model.item_factors_[places[1]]).sum(1)
    assert z == pytest.approx(want, abs=1e-5)
    assert np.array_equal([float(line) for line in out(capsys, "predict", "m", file).out.splitlines()], z)
    shown = out(capsys, "evaluate", "m", file).out
    assert f"rmse       {np.sqrt(np.mean((z - data.values)**2)):.6f}" in shown
    assert f"mae        {np.abs(z - data.values).mean():.6f}" in shown
    lines = [line.split("\t") for line in out(capsys, "recommend", "m", "--users", "u3,u7", "-k", 4).out.splitlines()]
    found, scores = model.recommend(["u3", "u7"], 4)
    assert [line[1] for line in lines] == found.ravel().tolist() and [line[0] for line in lines] == ["u3"] * 4 + ["u7"] * 4
    assert [float(line[2]) for line in lines] == pytest.approx(scores.ravel(), rel=1e-5)
    trained = {(u, i) for u, i in zip(users, items)} - {("u3", "x")}
    assert len(trained & {("u3", i) for i in found[0]}) <= 1  # the one held out, which the model has not seen
    assert out(capsys, "train", "mf", file, "--rank", 4, "--workers", 1, "--epochs", 3, "--leave-last-out", "--model",
               "n").out
    assert all(np.array_equal(x, y) for x, y in zip(model_files.load("m")[0].values(), model_files.load("n")[0].values()))
    capsys.readouterr()
    with open("only", "w") as only:
        only.write("i1\n\ni2\nnone\n")
    printed = out(capsys, "recommend", "m", "--users", "@only", "--items", "only", "--include-seen")
    assert "3 of 3 users are unknown" in printed.err and "1 of 3 items are unknown" in printed.err
    assert sorted({line.split("\t")[1] for line in printed.out.splitlines()}) == ["i1", "i2"]


def test_unknown_identifiers_get_mean_and_biases(fitted):
    model, _, _ = fitted
    with pytest.warns(UserWarning, match="1 of 3 pairs have a user that the model does not know") as said:
        z = model.predict(np.array([0, 99, 0]), np.array([500, 3, 500]))
    assert "2 of 3 pairs have an item" in str(said[1].message)
    place = model.item_ids_.tolist().index(3)
    assert z == pytest.approx([model.mean_ + model.user_biases_[0], model.mean_ + model.item_biases_[place],
                               model.mean_ + model.user_biases_[0]], abs=1e-6)
    with pytest.warns(UserWarning, match="they get the items with the highest biases"):
        found, _ = model.recommend([99], 3)
    assert found[0].tolist() == model.item_ids_[np.argsort(-model.item_biases_)[:3]].tolist()


def test_it_learns_planted_factors_and_is_one_thing_in_all_forms(fitted, tmp_path):
    model, (users, items, values), z = fitted
    lacking = np.ones(z.shape, bool)
    lacking[users, items] = False
    assert model.evaluate((*np.nonzero(lacking), z[lacking]))["rmse"] < 0.2 * z.std()
    again = MatrixFactorization(**model.get_params()).fit(csr_array((values, (users, items))))
    again.set_params(rank=np.int64(4))
    assert np.array_equal(again.item_factors_, model.item_factors_) and again.loss_curve_ == model.loss_curve_
    model.save(tmp_path / "m")
    back = hogwild.load(tmp_path / "m")
    assert back.get_params() == model.get_params()
    for name in "user_ids_", "item_ids_", "user_factors_", "item_factors_", "user_biases_", "item_biases_", "mean_":
        assert np.array_equal(getattr(back, name), getattr(model, name)), name
    assert np.array_equal(back.recommend(k=50)[0], model.recommend(k=50)[0])


def test_fold_in_of_squared_loss_is_ridge_regression(fitted):
    model, _, z = fitted
    model = hogwild.families.mf_estimator.MatrixFactorization.of_model(model._model)
    items = np.arange(0, 40, 2)
    model.fold_in((np.full(20, 1000), items, z[5, items]))
    place = [model.item_ids_.tolist().index(i) for i in items]
    x = np.column_stack((model.item_factors_[place].astype(float), np.ones(20)))
    shrink = 0.01 * 20 * np.append(np.ones(4), 1 / model._model.units.scale)
    want = np.linalg.solve(x.T @ x + np.diag(shrink), x.T @ (z[5, items] - model.mean_ - model.item_biases_[place]))
    assert np.append(model.user_factors_[-1], model.user_biases_[-1]) == pytest.approx(want, abs=1e-4)
    rest = np.arange(1, 40, 2)
    assert np.sqrt(np.mean((model.predict(np.full(20, 1000), rest) - z[5, rest])**2)) < 0.3 * z.std()
    assert not set(model.recommend(1000, 20)[0][0]) & set(items) and len(model.user_ids_) == 61
    model.fold_in((np.full(20, 1000), rest, z[5, rest]))  # known by now: these ratings replace the others
    assert len(model.user_ids_) == 61 and set(model.recommend(1000, 20)[0][0]) == set(items)


def test_fold_in_of_positives_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(2)
    liked = (np.repeat(np.arange(30), 8), np.concatenate([rng.choice(15, 8, replace=False) + 15 * (u % 2)
                                                          for u in range(30)]))
    model = MatrixFactorization(loss="bpr", rank=4, workers=1, epochs=30, lr=0.1, verbose=-1).fit(liked)
    assert model.evaluate(([0, 1], [int(np.setdiff1d(np.arange(15) + 15 * k, liked[1][liked[0] == k])[0])
                                    for k in (0, 1)]))["auc"] > 0.7
    with pytest.warns(UserWarning, match="1 of 4 ratings are of items that the model does not know"):
        model.fold_in(([50] * 4, [0, 1, 2, 77]))
    assert np.mean(model.recommend(50, 5)[0] < 15) >= 0.8  # those of its group
    inner, numbers = model._model, model._model.item_ids.find([0, 1, 2])

    def loss(p):
        score = inner.factors.items @ p + inner.factors.item_biases
        margins = score[numbers][:, None] - np.delete(score, numbers)
        return np.logaddexp(0, -margins).mean(1).sum() + 3 * inner.l2 / 2 * p @ p
    p, _ = fold_in(inner, numbers, np.ones(3))
    assert all(loss(p) <= loss(p + step) + 1e-9 for step in 0.01 * rng.standard_normal((20, 4)))


def test_partial_fit_takes_new_users_and_items_and_goes_on(fitted):
    model, (users, items, values), z = fitted
    first = (users < 50) & (items < 35)
    part = MatrixFactorization(rank=4, epochs=60, workers=1, l2=0.01,
                               verbose=-1).fit((users[first], items[first], values[first]))
    known, mean = part.predict(users[first], items[first]), part.mean_
    part.set_params(lr=0.0)  # nothing moves: what joined begins near mean and biases, the others stay
    part.partial_fit((users[~first], items[~first], values[~first]))
    assert part.mean_ == mean and part.predict(users[first], items[first]) == pytest.approx(known, abs=1e-4)
    assert len(part.user_ids_) == 60 and len(part.item_ids_) == 40
    part.set_params(lr=0.08)
    rest = users[~first], items[~first], values[~first]
    before = part.evaluate(rest)["rmse"]
    for _ in range(30):
        part.partial_fit(rest)
    assert part.evaluate(rest)["rmse"] < 0.5 * before
    assert not (set(part.recommend(55, 40)[0][0]) - {-1}) & set(items[users == 55])  # seen, of both calls
    with pytest.raises(UserError, match="partial_fit goes on with rank=4, got 8"):
        part.set_params(rank=8).partial_fit(rest)


def test_features_stand_in_for_ratings():
    rng = np.random.default_rng(4)
    X = rng.standard_normal((80, 5))
    z = 3 + rng.standard_normal((60, 5)) @ X.T
    users, items = np.nonzero(rng.random(z.shape) < 0.6)
    old = items < 60
    model = MatrixFactorization(rank=6, epochs=60, workers=1, l2=0.01, feature_l2=0.1, verbose=-1)
    model.fit((users[old], items[old], z[users[old], items[old]]), item_features=(np.arange(70), X[:70]))
    model.add_items([70, 71], csr_array(X[70:72]))
    assert model.item_ids_.tolist()[-12:] == list(range(60, 72))
    new = np.arange(60, 72)
    error = model.predict(np.repeat(np.arange(60), 12), np.tile(new, 60)).reshape(60, 12) - z[:, 60:72]
    assert np.sqrt(np.mean(error**2)) < 0.35 * z[:, 60:72].std() and set(model.recommend(k=5)[0].ravel()) & set(new)
    known = model._model.item_ids.find(np.arange(60))
    own = np.column_stack((model.item_factors_, model.item_biases_))[known]
    W = np.linalg.solve(X[:60].T @ X[:60] + 0.1 * np.eye(5), X[:60].T @ (own - own.mean(0)))
    assert np.column_stack((model.item_factors_, model.item_biases_))[-1] == pytest.approx(X[71] @ W + own.mean(0), abs=1e-3)
    with pytest.raises(UserError, match="item 70 is known already"):
        model.add_items([70], X[70:71])
    with pytest.raises(UserError, match="needs a map from features: give user_features to fit"):
        model.add_users([70], X[70:71])


def test_synthetic_ratings_and_a_run_that_is_resumed(capsys):
    train = "train", "mf", "--rows", 20_000, "--epochs", 2, "--workers", 1, "--checkpoint", "c"
    said = out(capsys, *train, "--model", "a").out
    assert "best achievable on these synthetic data (the planted scores): 0.49" in said
    said = out(capsys, *train, "--resume", "--model", "b").out
    assert "resumed from c: epoch 3" in said
    assert np.array_equal(*(model_files.load(name)[0]["item_factors"] for name in "ab"))
    said = out(capsys, "train", "mf", "--rows", 20_000, "--loss", "bpr", "--epochs", 3, "--early-stopping", "ndcg@10").out
    assert "precision@10" in said and "auc" in said
    text = out(capsys, "evaluate", "a", lasting("a.csv")).out
    assert "rmse" in text
    assert "ratings     2 (100% of all pairs)" in out(capsys, "inspect", "a.csv", "--family", "mf").out


def lasting(name):
    with open(name, "w") as file:
        file.write("1,2,3\n1,3,4\n")
    return name


@pytest.mark.parametrize(("text", "options", "said"), [
    ("a::b::3\na::c\n", (), "line 2: got 2 fields, needed 3"), ("a::b::3\nb::c::x\n", (), "line 2: got rating 'x'"),
    ("", (), "is empty"), ("a::b::3\na::c::4\n", ("--holdout", 0), "ratings of one user to train on, needed two"),
    ("a::b::3\nb::c::4\n", ("--rank", 257), "rank must be a whole number from 1 to 256"),
    ("a,b\nb,c\n", (), "has no ratings, which the loss squared needs"),
    ("a,b,1\nb,c,2\n", ("--lr", -1), "--lr must be a finite number"),
    ("a,b,1\nb,c,2\n", ("--loss", "hinge"), "unknown loss 'hinge'"),
    ("a,b,1\nb,c,2\n", ("--popularity", 1), "--popularity is of the"),
    ("a,b,1\nb,c,2\n", ("--columns", "0,0"), "--columns names a column twice"),
    ("a,b,1\nb,c,2\n", ("--rule", "apollo"), "unknown rule"),
    ("a,b,1\nb,c,2\n", ("--leave-last-out", "--test", "r"), "--leave-last-out and --test both")])
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, text, options, said):
    (tmp_path / "r").write_text(text)
    assert said in fails(capsys, "train", "mf", "r", *options, "--model", "m", "--record", "j", "--checkpoint", "c")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["r"]


def test_mistakes_with_models(tmp_path, capsys, file):
    (tmp_path / "few").write_text("a,b,1\na,c,2\nb,b,1\nb,b,3\n")
    said = out(capsys, "train", "mf", "few", "--workers", 8, "--holdout", 0, "--model", "m").out
    assert "3 workers: there are not more ratings" in said and "1 ratings are of a user and an item that another one" in said
    assert "needed at least 1" in fails(capsys, "recommend", "m", "-k", 0).replace("must be", "needed")
    assert "--probabilities" in fails(capsys, "predict", "m", "few", "--probabilities")
    assert "--label was given" in fails(capsys, "evaluate", "m", "few", "--label", "x")
    assert "none of the items to choose from is known" in fails(capsys, "recommend", "m", "--items", "r.csv.xz")
    printed = out(capsys, "predict", "m", "few")
    assert len(printed.out.splitlines()) == 4 and "another one" not in printed.err  # a line of the file, a score
    printed = out(capsys, "evaluate", "m", "few")
    assert "1 ratings are of a user and an item that another one" in printed.err
    assert "few: 3 of 3 pairs were trained on: metrics flatter" in printed.err
    assert len(out(capsys, "recommend", "m", "-k", 10**12, "--include-seen").out.splitlines()) == 4
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[:-5] + b"\0\0\0\0\1")
    assert "is damaged" in fails(capsys, "recommend", "m")
    tensors, header = {"user_factors": np.ones((1, 2), np.float32)}, {"family": "mf", "settings": {"loss": "squared"}}
    model_files.save("bad", tensors, header)
    assert "is no factorization that can be used" in fails(capsys, "predict", "bad", "few")
    (tmp_path / "l.svm").write_text("1 1:1\n-1 2:1\n")
    out(capsys, "train", "linear", "l.svm", "--model", "l", "--epochs", 1)
    assert "recommends nothing, needed a model of hogwild train mf" in fails(capsys, "recommend", "l")


@pytest.mark.parametrize(("given", "said"), [
    ({"rank": 4.0}, "needs a whole number as rank, got 4.0"), ({"epochs": 2.5}, "a whole number as epochs"),
    ({"random_state": None}, "a whole number as random_state"), ({"lr": "x"}, "needs a number as lr"),
    ({"loss": None}, "needs a text as loss"), ({"biases": "no"}, "True or False as biases"),
    ({"feature_l2": -1.0}, "feature_l2 must be a finite number")])
def test_parameters_of_the_wrong_kind(given, said):
    with pytest.raises(UserError, match=said):
        MatrixFactorization(**given).fit(([1, 2], [1, 2], [1, 2]))


def test_lists_of_no_length(fitted):
    model, known, _ = fitted
    for k in 0, 2.5, "3":
        for call, given in (model.recommend, [0]), (model.similar_items, [0]), (model.evaluate, known):
            with pytest.raises(UserError, match="k must be at least 1, a whole number"):
                call(given, k)
    with pytest.raises(UserError, match="holds no rating to measure"):
        model.evaluate(([], [], []))


def test_ml_1m(capsys):
    """Squared loss reaches what LIBMF does (0.844), and films are like their sequels."""
    path = published.folder() / "ml-1m" / "ratings.txt.xz"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    said = out(capsys, "train", "mf", path, "--model", "m").out
    assert float(said.split("rmse ")[-1].split()[0]) < 0.85
    similar = hogwild.load("m").similar_items([260], 2)[0]  # Star Wars: episode IV
    assert sorted(similar[0].tolist()) == [1196, 1210]  # episodes V and VI
