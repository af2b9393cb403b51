"""What is selected: heads by name, jobs shared by several people."""

from types import SimpleNamespace

import param
import pytest

from workbench import engine
from workbench.session import URL, Session


@pytest.mark.parametrize("cell", [[0, 0], [2, 11], [31, 7], []])
def test_a_selected_head_comes_back(cell):
    session = Session()
    session.select(cell)
    assert session.selected == cell


@pytest.mark.parametrize("text", ["L9H3", "9.3", "a9.h3", "A9.3"])
def test_a_head_may_be_written_as_people_do(text):
    assert Session(head=text).selected == [9, 3]


@pytest.mark.parametrize("text", ["garbage", "L9", "9", "L-1H2", "<b>", "L9H3 L2H1"])
def test_text_that_is_no_head_selects_none(text):
    assert Session(head=text).selected == []


def test_selecting_tells_those_who_watch_once():
    session, heard = Session(), []
    session.param.watch(lambda event: heard.append(event.new), "head")
    session.select([1, 2])
    session.select([1, 2])
    session.select([])
    assert heard == ["L1H2", ""]


def test_a_checkpoint_is_part_of_the_reference():
    assert Session(model="zoo/a").reference == "zoo/a"
    assert Session(model="zoo/a", checkpoint="500").reference == "zoo/a@500"


def test_the_address_carries_all_of_the_session():
    assert set(URL) == set(Session.param) - {"name"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", 7), ("n", 1025), ("top", 0), ("top", 1.1), ("page", 5), ("seed", -1), ("sink", 7), ("length", 2)),
        *(("route", 8), ("gradient", 5), ("layer", -2)),
    ],
)
def test_a_value_out_of_bounds_is_refused(name, value):
    session = Session()
    before = session.param.values()
    with pytest.raises(ValueError, match=f"'Session.{name}'"):
        session.param.update(**{name: value})
    assert session.param.values() == before


class Client:
    """A Dask client that never finishes anything by itself."""

    def __init__(self):
        self.subscribed, self.future = (
            {},
            SimpleNamespace(status="pending", done=lambda: self.future.status != "pending"),
        )

    def subscribe_topic(self, name, handler):
        self.subscribed[name] = handler

    def submit(self, function, *arguments, **options):
        assert function is engine.execute and arguments == ({"analysis": "a"}, "job") and options["key"] == "job"
        return self.future


class Event:
    """The stop event of a job."""

    def __init__(self, name, client):
        self.asked = 0

    def set(self):
        self.asked += 1


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setattr("distributed.Event", Event)
    return engine.Job("job", Client(), engine.execute, {"analysis": "a"})


def test_a_job_is_cancelled_when_the_last_one_leaves(job):
    job.join()
    job.join()
    job.leave()
    assert job._stop.asked == 0
    job.leave()
    assert job._stop.asked == 1


def test_a_finished_job_is_not_cancelled(job):
    job.join()
    job._client.future.status = "finished"
    job.leave()
    assert job._stop.asked == 0


def test_progress_is_what_the_worker_said_last(job):
    hear = job._client.subscribed["job"]
    assert job.progress == ("waiting", 0, 1)
    hear((0.0, {"what": "tracing", "done": 3, "of": 9}))
    hear((1.0, "something else on the topic"))
    assert job.progress == ("tracing", 3, 9)
    assert not job.done and job.status == "pending"


def test_a_session_holds_plain_values_only():
    kinds = (param.String, param.Integer, param.Number)
    assert all(isinstance(Session.param[name], kinds) for name in URL)
