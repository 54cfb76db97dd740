"""Files and batches over HTTP, with OpenAI's client: nothing lost, nothing repeated, bounded."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from strata.server.errors import ApiError
from strata.server.file_store import FileStore
from support.running import NAMES, Running, load, running, serving, wait_for

openai = pytest.importorskip("openai", reason="the package openai is not installed")
pytest.importorskip("python_multipart", reason="python-multipart is not installed")

ROOM = 200_000
PATH = "/v1/completions"


def line(number: int, tokens: int = 2, **other: Any) -> bytes:
    body = {"model": "any", "prompt": f"{number} and", "max_tokens": tokens, "temperature": 0}
    asked = {"custom_id": f"r{number}", "method": "POST", "url": PATH, "body": body, **other}
    return json.dumps(asked).encode() + b"\n"


def results(text: bytes) -> list[Any]:
    return [json.loads(each) for each in text.splitlines()]


@pytest.fixture(scope="module")
def shared(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("kept") / "files"
    with (
        load(smollm2_path) as served,
        running(served, files=folder, files_bytes=ROOM) as server,
    ):
        yield server


@pytest.fixture
def client(shared: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        yield client
        for batch in client.batches.list():
            if batch.status in ("validating", "in_progress"):
                client.batches.cancel(batch.id)
        wait_for(lambda: all(ended(b) for b in client.batches.list()))
        for file in client.files.list():
            client.files.delete(file.id)
    shared.wait_until_free()


def ended(batch: Any) -> bool:
    return batch.status in ("completed", "failed", "cancelled")


def wait_for_batch(client: Any, id: str, answered: int) -> Any:
    """The batch, once it has ended or has so many answers."""

    def far() -> bool:
        batch = client.batches.retrieve(id)
        return ended(batch) or batch.request_counts.completed >= answered

    wait_for(far)
    return client.batches.retrieve(id)


def made(client: Any, lines: bytes) -> Any:
    file = client.files.create(file=("in.jsonl", lines), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=PATH,
        completion_window="24h",
        metadata={"for": "a test"},
    )


def test_a_batch_is_answered(client: Any, shared: Running) -> None:
    file = client.files.create(file=("in.jsonl", line(1)), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("in.jsonl", len(line(1)), "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == line(1)
    assert [each.id for each in client.files.list()] == [file.id]

    batch = made(client, b"".join(line(n) for n in range(5)) + line(9, -7) + b"nothing\n")
    assert (batch.status, batch.metadata) == ("validating", {"for": "a test"})
    wait_for(lambda: ended(client.batches.retrieve(batch.id)))
    done = client.batches.retrieve(batch.id)
    assert done.status == "completed"
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (7, 5, 2)
    answers = results(client.files.content(done.output_file_id).read())
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(5)]
    said = [each["response"]["body"]["choices"][0]["text"] for each in answers]
    alone = [
        client.completions.create(model=NAMES[0], prompt=f"{n} and", max_tokens=2, temperature=0)
        for n in range(5)
    ]
    assert said == [each.choices[0].text for each in alone]
    wrong = results(client.files.content(done.error_file_id).read())
    assert [each["custom_id"] for each in wrong] == ["r9", None]
    assert client.batches.list(limit=1).data[0].id == batch.id


def test_a_batch_is_cancelled_and_keeps_what_it_has(client: Any) -> None:
    batch = made(client, line(0, 1) + b"".join(line(n, 300) for n in range(1, 9)))
    with pytest.raises(openai.BadRequestError, match="cancel it first"):
        client.files.delete(batch.input_file_id)
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 0)
    client.batches.cancel(batch.id)
    wait_for(lambda: ended(client.batches.retrieve(batch.id)))
    done = client.batches.retrieve(batch.id)
    assert done.status == "cancelled"
    answers = results(client.files.content(done.output_file_id).read())
    assert len(answers) == done.request_counts.completed < 9
    with pytest.raises(openai.BadRequestError, match="cancelled already"):
        client.batches.cancel(batch.id)


def test_what_is_no_batch_is_refused(client: Any, shared: Running) -> None:
    file = client.files.create(file=("in.jsonl", line(1)), purpose="user_data")
    for wrong in ({"input_file_id": file.id}, {"endpoint": "/v1/embeddings"}):
        asked = {"input_file_id": file.id, "endpoint": PATH, "completion_window": "24h", **wrong}
        with pytest.raises(openai.BadRequestError):
            client.batches.create(**asked)
    for id in ("file-" + "0" * 24, "../lock", "lock"):
        with pytest.raises(openai.NotFoundError):
            client.batches.create(input_file_id=id, endpoint=PATH, completion_window="24h")
        assert httpx.get(f"{shared.url}/v1/files/{id}/content").status_code == 404
    empty = made(client, b"\n\n")
    wait_for(lambda: ended(client.batches.retrieve(empty.id)))
    assert "1 to" in client.batches.retrieve(empty.id).errors.data[0].message


def test_uploads_are_bounded_and_leave_nothing_when_refused(
    client: Any, shared: Running, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shared.service.settings.files
    assert folder is not None
    assert client.files.list().data == []
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("large", b"x" * (ROOM + 1)), purpose="batch")
    assert caught.value.status_code == 413
    most = b"x" * (ROOM * 2 // 3)
    first = client.files.create(file=("large", most), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="delete some") as caught:
        client.files.create(file=("large", most), purpose="batch")
    assert caught.value.status_code == 413
    client.files.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("in", b"x"), purpose="fine-tune")
    head = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for headers, body in (
        ({}, b"{}"),
        (head, b""),
        (head, b"nothing"),
        ({"content-type": "multipart/form-data; boundary=" + "b" * 300}, b""),
        (head, part + b"cut"),
        (head, part + b"x\r\n" + part + b"y\r\n--b--\r\n"),
        (head, b"--b\r\n" + b"x" * 9000),
        (head, b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 9000),
    ):
        answer = httpx.post(f"{shared.url}/v1/files", content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
    assert not caplog.records
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_folder_belongs_to_one_server_and_to_nobody_else(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "files", 1000)
    store.open()
    with pytest.raises(ApiError, match="another server"):
        FileStore(tmp_path / "files", 1000).open()
    store.close()
    (tmp_path / "files").chmod(0o777)
    with pytest.raises(ApiError, match="others may write"):
        FileStore(tmp_path / "files", 1000).open()


def test_what_was_not_finished_is_not_there(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 1000)
    with store.new("batch") as half:
        half.write(b"half")
    assert store.ids("file") == []
    (tmp_path / f"file-{'0' * 24}").write_bytes(b"whole, but not told of")
    (tmp_path / "file-x.part").write_bytes(b"half")
    store.close()
    store.open()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def fill(client: Any, left: int) -> Any:
    """A file that leaves room for so many bytes."""
    used = sum(each.bytes for each in client.files.list())
    return client.files.create(file=("full", b"x" * (ROOM - used - left)), purpose="user_data")


def test_without_room_for_answers_those_that_came_are_kept(client: Any) -> None:
    lines = b"".join(line(n) for n in range(30))
    filled = fill(client, len(lines) + 6000)
    batch = made(client, lines)
    wait_for(lambda: ended(client.batches.retrieve(batch.id)))
    done = client.batches.retrieve(batch.id)
    assert done.status == "failed"
    assert "files-size" in done.errors.data[0].message
    answers = results(client.files.content(done.output_file_id).read())
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(len(answers))]
    assert 0 < done.request_counts.completed == len(answers) < 30
    client.files.delete(filled.id)


def test_without_room_for_two_files_all_answers_are_in_one(client: Any) -> None:
    lines = b"".join(line(n) for n in range(20)) + line(20, -7)
    filled = fill(client, len(lines) + 14_000)
    batch = made(client, lines)
    wait_for(lambda: ended(client.batches.retrieve(batch.id)))
    done = client.batches.retrieve(batch.id)
    assert (done.status, done.request_counts.failed) == ("completed", 1)
    answers = results(client.files.content(done.output_file_id).read())
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(21)]
    assert len(results(client.files.content(done.error_file_id).read())) == 1
    client.files.delete(filled.id)


def test_no_line_keeps_other_batches_from_being_answered(client: Any) -> None:
    id = "\ud800" * 20
    first = made(client, line(0, custom_id=id) + b"[" * 60_000 + b"\n" + line(1))
    second = made(client, line(2))
    wait_for(lambda: ended(client.batches.retrieve(first.id)))
    wait_for(lambda: ended(client.batches.retrieve(second.id)))
    counts = client.batches.retrieve(first.id).request_counts
    assert (counts.completed, counts.failed) == (2, 1)
    assert client.batches.retrieve(second.id).status == "completed"


def test_a_batch_of_another_model_can_be_cancelled(client: Any, shared: Running) -> None:
    store, batch = shared.service.files, made(client, line(0))
    assert store is not None
    wait_for(lambda: ended(client.batches.retrieve(batch.id)))
    waiting = store.batch(batch.id) | {"model": "another", "status": "in_progress"}
    store.write(waiting)
    client.batches.cancel(batch.id)
    wait_for(lambda: client.batches.retrieve(batch.id).status == "cancelled")
    client.files.delete(batch.input_file_id)


def test_long_lists_are_told_in_parts(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [client.files.create(file=("in", b"x"), purpose="evals").id for _ in range(5)]
    monkeypatch.setattr("strata.server.openai.files._PAGE_BYTES", 300)
    first = client.files.list()
    assert first.has_more
    assert sorted(each.id for each in first) == sorted(sent)


def test_longest_metadata_are_kept(client: Any) -> None:
    file = client.files.create(file=("in.jsonl", line(1)), purpose="batch")
    wide = {chr(0x1F600 + n) * 64: "\U0001f600" * 512 for n in range(16)}
    batch = client.batches.create(
        input_file_id=file.id, endpoint=PATH, completion_window="24h", metadata=wide
    )
    wait_for(lambda: ended(client.batches.retrieve(batch.id)))
    assert client.batches.retrieve(batch.id).metadata == wide


def test_a_file_that_cannot_be_written_down_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 1000)
    for _ in range(3):
        with store.new("batch") as file:
            file.write(b"x" * 950)
            with pytest.raises(ApiError, match="files-size"):
                file.finish("name")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with store.new("batch") as file:
        file.write(b"x" * 500)
        assert file.finish("name")["bytes"] == 500
    assert [path.stat().st_mode & 0o77 for path in tmp_path.iterdir()] == [0, 0, 0]


def test_batches_that_ended_make_place_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strata.server.file_store.MOST_FILES", 12)
    store = FileStore(tmp_path, 100_000)
    for number in range(20):
        store.make_place()
        status = "in_progress" if number < 8 else "completed"
        store.write({"id": f"batch_{number:024x}", "created_at": number, "status": status})
    assert set(store.ids("batch")) >= {f"batch_{number:024x}" for number in range(8)}
    assert len(list(tmp_path.iterdir())) <= 12
    for number in range(20, 33):
        store.write({"id": f"batch_{number:024x}", "created_at": 1, "status": "validating"})
    store.make_place()
    with pytest.raises(ApiError, match="delete some"):
        store.make_place()


def test_a_folder_that_cannot_be_used_is_told_each_time(tmp_path: Path) -> None:
    (tmp_path / "a.part").mkdir()
    store = FileStore(tmp_path, 1000)
    said = []
    for _ in range(2):
        with pytest.raises(ApiError, match="not kept here") as caught:
            store.open()
        said.append(str(caught.value))
    assert said[0] == said[1]
    (tmp_path / "a.part").rmdir()
    store.open()


@pytest.mark.slow
def test_a_large_file_may_take_longer_than_a_request(smollm2_path: Path, tmp_path: Path) -> None:
    part = b"x" * ((1 << 20) + 4096)

    def parts() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(4):
            time.sleep(1.0)
            yield part
        yield b"\r\n--b--\r\n"

    with (
        load(smollm2_path) as served,
        running(served, files=tmp_path / "files", request_s=3.0) as server,
    ):
        answer = httpx.post(
            f"{server.url}/v1/files",
            content=parts(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
    assert (answer.status_code, answer.json()["bytes"]) == (200, 4 * len(part))


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(smollm2_path: Path, tmp_path: Path) -> None:
    """No line is lost or said twice, wherever it is killed, and answers are the same."""
    folder = tmp_path / "files"
    lines = b"".join(line(n, 12) for n in range(16))
    options = ("--files", str(folder), "--parallel", "4")
    kills, id = 0, ""
    for attempt in range(8):
        with (
            serving(smollm2_path, *options) as (process, url),
            openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
        ):
            id = id or made(client, lines).id
            least = client.batches.retrieve(id).request_counts.completed + 6
            batch = wait_for_batch(client, id, least)
            if ended(batch):
                answers = results(client.files.content(batch.output_file_id).read())
                break
            time.sleep(0.01 * attempt)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 2
    assert batch.status == "completed"
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(16)]
    assert batch.request_counts.completed == 16
