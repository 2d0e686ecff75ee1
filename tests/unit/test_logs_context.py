import asyncio
import concurrent.futures
import contextvars
import functools
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

from watchkeeper.logs import RequestContext, current_request, propagate_context_to_threads, trace_headers
from watchkeeper.logs._context import bind_request, unbind_request

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Propagate contexts to threads until the test ends."""
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)
    pool_class = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(pool_class, "submit", pool_class.submit)
    propagate_context_to_threads()


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Return a pool with one worker thread, which all jobs share."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def request_id() -> str | None:
    """Return the id of the current request."""
    request = current_request()
    return None if request is None else request.request_id


def run_in_request(name: str, call: Any) -> Any:
    """Call within a request with this id; return the result."""

    def within() -> Any:
        bind_request(RequestContext(request_id=name))
        return call()

    return contextvars.Context().run(within)


def test_a_request_is_bound_and_unbound() -> None:
    """Bindings nest, and unbinding restores the previous one."""
    outer = bind_request(RequestContext(request_id="a"))
    inner = bind_request(RequestContext(request_id="b"))
    assert request_id() == "b"
    unbind_request(inner)
    assert request_id() == "a"
    unbind_request(outer)
    assert request_id() is None


def test_unbinding_in_another_context_leaves_no_request_behind() -> None:
    """A body generator that another task closes neither raises nor leaks its request into the next one."""
    token = bind_request(RequestContext(request_id="a"))

    def elsewhere() -> str | None:
        unbind_request(token)
        return request_id()

    assert contextvars.copy_context().run(elsewhere) is None
    unbind_request(token)


def test_trace_headers_hold_the_ids_of_the_request() -> None:
    """X-Request-ID always, W3C traceparent and tracestate if they are known."""
    assert trace_headers() == {}
    seen = []
    traced = RequestContext(request_id="r", trace_id=TRACE, span_id=SPAN, trace_flags="00", trace_state="a=1")
    for request in (RequestContext(request_id="r"), traced):
        token = bind_request(request)
        seen.append(trace_headers())
        unbind_request(token)
    parent = {"traceparent": f"00-{TRACE}-{SPAN}-00", "tracestate": "a=1"}
    assert seen == [{"X-Request-ID": "r"}, {"X-Request-ID": "r", **parent}]


@pytest.mark.usefixtures("propagated")
def test_thread_has_the_context_of_the_request_that_started_it() -> None:
    """So do a subclass with its own run, and a timer."""
    seen: dict[str, str | None] = {}

    class Own(threading.Thread):
        def run(self) -> None:
            seen["subclass"] = request_id()

    def start() -> None:
        threads = [
            threading.Thread(target=lambda: seen.update(thread=request_id())),
            Own(),
            threading.Timer(0, lambda: seen.update(timer=request_id())),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run_in_request("a", start)
    assert seen == {"thread": "a", "subclass": "a", "timer": "a"}


@pytest.mark.usefixtures("propagated")
def test_thread_keeps_a_run_set_on_the_instance() -> None:
    """Some libraries replace run on the instance; any other thread does not keep the request's context."""
    seen: list[str | None] = []
    thread = threading.Thread()
    own = lambda: seen.append(request_id())  # noqa: E731 - replaced as such libraries do
    thread.run = own  # type: ignore[method-assign]
    run_in_request("a", thread.start)
    thread.join()
    assert seen == ["a"]
    assert thread.run is own
    thread = threading.Thread()
    run_in_request("a", thread.start)
    thread.join()
    assert "run" not in vars(thread)


@pytest.mark.usefixtures("propagated")
def test_thread_runs_in_a_copy_of_the_context() -> None:
    """Its bindings do not reach the request that started it."""

    def start() -> str | None:
        thread = threading.Thread(target=bind_request, args=(RequestContext(request_id="b"),))
        thread.start()
        thread.join()
        return request_id()

    assert run_in_request("a", start) == "a"


@pytest.mark.usefixtures("propagated")
def test_job_of_a_pool_has_the_context_of_its_submitter(pool: concurrent.futures.ThreadPoolExecutor) -> None:
    """Not the one whose job started the worker thread; arguments, results and exceptions stay."""
    seen = [run_in_request(name, lambda: pool.submit(request_id).result()) for name in ("a", "b")]
    assert seen == ["a", "b"]
    assert pool.submit(request_id).result() is None
    assert run_in_request("c", lambda: list(pool.map(lambda _: request_id(), range(2)))) == ["c", "c"]
    assert pool.submit(int, "12", base=8).result() == 10
    with pytest.raises(ValueError, match="invalid literal"):
        pool.submit(int, "x").result()


def test_worker_thread_does_not_keep_the_context_it_was_started_in(
    pool: concurrent.futures.ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own context is empty, as a job submitted without propagation shows."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", threading.Thread.start)
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", pool.__class__.submit)
        propagate_context_to_threads()
        assert run_in_request("a", lambda: pool.submit(request_id).result()) == "a"
    assert pool.submit(request_id).result() is None


@pytest.mark.usefixtures("propagated")
async def test_tasks_and_executors_of_asyncio_have_the_context_of_the_request() -> None:
    """create_task, to_thread, and run_in_executor with the loop's own pool and with another."""
    token = bind_request(RequestContext(request_id="a"))
    loop = asyncio.get_running_loop()

    async def task() -> str | None:
        return request_id()

    with concurrent.futures.ThreadPoolExecutor() as other:
        seen = [
            await asyncio.create_task(task()),
            await asyncio.to_thread(request_id),
            await loop.run_in_executor(None, request_id),
            await loop.run_in_executor(other, request_id),
        ]
    unbind_request(token)
    assert seen == ["a"] * 4


@pytest.mark.usefixtures("propagated")
async def test_concurrent_requests_do_not_mix_their_contexts() -> None:
    """A hundred requests that share a pool each see their own id, every time."""

    async def serve(name: str) -> set[str | None]:
        bind_request(RequestContext(request_id=name))
        loop = asyncio.get_running_loop()
        return {await loop.run_in_executor(None, request_id) for _ in range(5)}

    seen = await asyncio.gather(*(asyncio.create_task(serve(str(number))) for number in range(100)))
    assert seen == [{str(number)} for number in range(100)]


@pytest.mark.usefixtures("propagated")
def test_patch_of_another_library_on_top_works(
    pool: concurrent.futures.ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking again changes nothing, and another library may wrap what we patched before that."""
    before = (threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit)
    propagate_context_to_threads()
    assert (threading.Thread.start, concurrent.futures.ThreadPoolExecutor.submit) == before
    for owner, name in ((threading.Thread, "start"), (concurrent.futures.ThreadPoolExecutor, "submit")):
        monkeypatch.setattr(owner, name, functools.partialmethod(getattr(owner, name)))
    propagate_context_to_threads()
    seen: list[str | None] = []
    thread = threading.Thread(target=lambda: seen.append(request_id()))
    run_in_request("a", thread.start)
    thread.join()
    seen.append(run_in_request("a", lambda: pool.submit(request_id).result()))
    assert seen == ["a", "a"]


@pytest.mark.usefixtures("propagated")
def test_thread_that_has_a_context_keeps_it() -> None:
    """Since 3.14 a thread can be given a context."""
    seen: list[str | None] = []
    thread = threading.Thread(target=lambda: seen.append(request_id()))
    thread._context = contextvars.Context()  # type: ignore[attr-defined]
    run_in_request("a", thread.start)
    thread.join()
    assert seen == [None]


@pytest.mark.usefixtures("propagated")
def test_jobs_for_other_interpreters_are_not_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """InterpreterPoolExecutor (3.14) pickles its jobs, and a context cannot be pickled."""

    class InterpreterPoolExecutor(concurrent.futures.ThreadPoolExecutor):
        """Stands where 3.14 has its own."""

    module = types.ModuleType("concurrent.futures.interpreter")
    module.InterpreterPoolExecutor = InterpreterPoolExecutor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "concurrent.futures.interpreter", module)
    with InterpreterPoolExecutor(max_workers=1) as interpreters:
        interpreters.submit(request_id).result()
        assert run_in_request("a", lambda: interpreters.submit(request_id).result()) is None
