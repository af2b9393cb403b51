"""The store: results are written whole or not at all, and found again by everything they depend on."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xarray as xr
from test_schema import good

from workbench import results, store
from workbench.schema import SchemaError
from workbench.tasks import make_task

BASE = {"analysis": "a", "params": {"draws": 10}, "model_hash": "m", "options": {"dtype": "float32"}, "task_hash": "t"}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def nearly_full_disk(room: int = 4096) -> Iterator[None]:
    """No file can grow beyond `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_saved_is_loaded(tmp_path):
    path = store.save(good(), tmp_path / "deep" / "result.nc")
    xr.testing.assert_identical(store.load(path), good())
    assert names_in(path.parent) == ["result.nc"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = store.save(good(), tmp_path / "result.nc")
    before = path.read_bytes()
    assert len(before) > 4096
    with nearly_full_disk(), pytest.raises(store.StoreError, match=r"File too large.*WORKBENCH_HOME"):
        store.save(good(1), path)
    assert path.read_bytes() == before and "result.nc" in names_in(tmp_path)
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_an_error_at_the_last_moment_leaves_nothing(tmp_path, monkeypatch):
    def replace(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(store.StoreError, match="No space left on device"):
        store.save(good(), tmp_path / "new" / "result.nc")
    assert names_in(tmp_path / "new") == []


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(store.StoreError, match="WORKBENCH_HOME"):
        store.save(good(), tmp_path / "taken" / "result.nc")


def test_what_is_no_result_is_not_written(tmp_path):
    with pytest.raises(SchemaError):
        store.save(good().rename(head="kopf"), tmp_path / "result.nc")
    assert not (tmp_path / "result.nc").exists() and not [n for n in names_in(tmp_path) if n.endswith(".nc")]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:100], lambda b: b[: len(b) // 2], lambda b: b"x" * 999])
def test_a_damaged_file_is_set_aside(damage):
    path = store.save(good(), store.path_of("patching", "key"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(store.StoreError, match="cannot be read as a result"):
        store.load(path)
    with pytest.warns(UserWarning, match="set aside"):
        assert store.find("patching", "key") is None
    assert names_in(path.parent) == [path.with_suffix(".damaged").name]
    assert store.find("patching", "key") is None  # now without a warning


def test_another_netcdf_file_is_no_result():
    path = store.save(good(), store.path_of("patching", "key"))
    path.write_bytes(bytes(good().drop_attrs().to_netcdf(engine="h5netcdf")))
    with pytest.raises(SchemaError):
        store.load(path)
    with pytest.warns(UserWarning, match="set aside"):
        assert store.find("patching", "key") is None


def test_the_home_is_where_it_is_told(home, monkeypatch):
    assert store.home() == home and store.path_of("a", "k") == home / "results" / "a-k.nc"
    monkeypatch.delenv("WORKBENCH_HOME")
    assert store.home() == Path.home() / ".cache" / "workbench"


@pytest.mark.parametrize(
    "change",
    [
        {"analysis": "b"},
        {"params": {"draws": 11}},
        {"params": {"draws": 10, "batch": 1}},
        {"model_hash": "n"},
        {"task_hash": "u"},
        *({"options": {"dtype": "float32", name: True}} for name in ("fold", "bos", "merge", "trust_remote_code")),
        {"options": {"dtype": "bfloat16"}},
    ],
)
def test_the_key_follows_everything_the_numbers_depend_on(change):
    assert store.key(**{**BASE, **change}) != store.key(**BASE)


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"override": True}, {"reference": "elsewhere"}])
def test_the_key_does_not_follow_what_cannot_change_them(change):
    assert store.key(**{**BASE, "options": {"dtype": "float32", **change}}) == store.key(**BASE)


def key_of(folder, task, **params) -> str:
    return results.key_of(results.specify("head_patching", str(folder), task, params))


def test_the_key_of_a_request(saved):
    folder, task = saved("gpt2"), make_task("ioi", n=8)
    base = key_of(folder, task)
    assert base == key_of(folder, task.spec) == key_of(folder, task, positions="all")
    others = [
        key_of(folder, task, draws=5),
        key_of(folder, make_task("ioi", n=9)),
        key_of(folder, make_task("ioi", n=8, seed=1)),
        key_of(folder, make_task("ioi", n=8, corruption="abc")),
        key_of(folder, make_task("subject_verb", n=8)),
        key_of(saved("llama"), task),
    ]
    assert len({base, *others}) == 7


def test_the_key_of_a_loaded_model_is_that_of_its_reference(saved, traced):
    model, task = traced("gpt2"), make_task("ioi", n=8)
    spec = results.specify("head_patching", model, task, {})
    assert results.key_of(spec, model.hash) == key_of(saved("gpt2"), task)


TASK, QUICK = make_task("subject_verb", n=8), {"draws": 10}


class TestRun:
    """`results.run`: computed once, then read."""

    def test_the_second_time_nothing_is_computed(self, saved, monkeypatch):
        first = results.run("head_patching", str(saved("gpt2")), TASK, **QUICK)
        monkeypatch.setattr("workbench.models.load.load", None)
        again = results.run("head_patching", str(saved("gpt2")), TASK, **QUICK)
        xr.testing.assert_equal(again, first)
        assert again.attrs == first.attrs
        stored = results.stored(results.specify("head_patching", str(saved("gpt2")), TASK, QUICK))
        xr.testing.assert_equal(stored, first)

    def test_refresh_computes_again_under_the_same_key(self, traced, home):
        first = results.run("head_patching", traced("gpt2"), TASK, **QUICK)
        (path,) = (home / "results").iterdir()
        path.write_bytes(bytes(first.assign_attrs(title="old").to_netcdf(engine="h5netcdf")))
        assert results.run("head_patching", traced("gpt2"), TASK, **QUICK).attrs["title"] == "old"
        again = results.run("head_patching", traced("gpt2"), TASK, refresh=True, **QUICK)
        assert again.attrs["title"] != "old"
        assert list((home / "results").iterdir()) == [path]

    def test_a_full_disk_still_gives_the_result(self, traced, home, monkeypatch):
        def replace(source, target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", replace)
        with pytest.warns(UserWarning, match=r"No space left.*WORKBENCH_HOME.*The result itself is returned"):
            ds = results.run("head_patching", traced("gpt2"), TASK, **QUICK)
        assert ds["effect"].shape == (2, 4) and names_in(home / "results") == []

    def test_a_damaged_result_is_computed_again(self, traced, home):
        first = results.run("head_patching", traced("gpt2"), TASK, **QUICK)
        (path,) = (home / "results").iterdir()
        path.write_bytes(path.read_bytes()[:500])
        with pytest.warns(UserWarning, match="computed again"):
            again = results.run("head_patching", traced("gpt2"), TASK, **QUICK)
        xr.testing.assert_equal(again, first)
        assert names_in(home / "results") == sorted([path.name, path.with_suffix(".damaged").name])
