"""Files as objects of any S3; a location is ``s3://bucket/key`` below the warehouse.

Promises: an object is there whole or not at all, and after ``flush`` every object written before it was acknowledged by S3, with
a checksum S3 has verified. Uploads run side by side in the background, bounded in number and bytes; one that fails is owed until
it has succeeded or its location is deleted: no ``flush`` returns meanwhile. An object is never replaced by other bytes (a PUT is
conditional; objects that need several requests, and servers without conditions, are looked at first). What was written can be
read at once. Deletes run in the background too, many in a request; after a failed one the object stays behind, and the next
``flush`` says so.
Never signs with other credentials than the project's, never shows them.
Fails with ``Refused`` (S3_NO_BUCKET, S3_CREDENTIALS, S3_CLOCK, S3_REGION, S3_REFUSED, STORAGE_DENIED, LOCATION_REUSED),
``Corrupt`` (FILE_MISSING, FILE_SHORT) and, once it was tried again and again for ``patience`` seconds, ``Unreachable``.
"""

import io
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from icelake.errors import Corrupt, IcelakeError, ProjectError, Refused, Unreachable
from icelake.model.location import canonical, split_s3
from icelake.ports import StoredFile
from icelake.project import S3Settings

_T = TypeVar("_T")

PATIENCE = 30.0
"""Seconds one operation is tried again."""
PARALLEL = 8
IN_FLIGHT = 64 << 20
"""Bytes written and not acknowledged; a larger object goes alone."""
_SINGLE = 16 << 20
"""Bytes of the largest object sent in one request. Requests end after ``_REQUEST`` seconds, so they must not be too large."""
_PART = 8 << 20
_REQUEST = timedelta(seconds=60)
_CONNECT = timedelta(seconds=5)
_CREDENTIALS = timedelta(minutes=5)
"""How long credentials are used before their places are read again: they may have been renewed."""
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0
_DELETES = 1000
"""Objects in one delete request (Amazon S3 API, DeleteObjects)."""
_BLOCK = 1 << 20
"""Bytes read at once from an opened object, at least: the first request brings its end, where Parquet has its footer."""
_BLOCKS = 4


@dataclass(slots=True, eq=False)
class _Upload:
    """An object on its way. ``told``: its failure was raised, and the next flush sends it again."""

    key: str
    data: memoryview
    future: "Future[None] | None" = None
    error: BaseException | None = None
    told: bool = False
    dropped: bool = False


class S3Storage:
    """``ports.Storage`` over the objects below ``warehouse`` (``s3://bucket/prefix``). May be used by several threads."""

    def __init__(
        self, warehouse: str, settings: S3Settings, *, patience: float = PATIENCE, parallel: int = PARALLEL, in_flight: int = IN_FLIGHT
    ) -> None:
        self._warehouse = canonical(warehouse)
        self._bucket, _ = split_s3(warehouse)
        self._patience = patience
        self._limit = in_flight
        self._store = _connect(self._bucket, settings)
        self._conditional = True
        self._changed = threading.Condition()
        self._uploads: dict[str, _Upload] = {}
        self._doomed: dict[str, _Upload | None] = {}
        """Keys to delete, each with the upload that must have ended before."""
        self._deleting: Future[None] | None = None
        self._failure: BaseException | None = None
        """Of a delete; not told yet."""
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(max(2, parallel), "icelake-s3")

    # ------------------------------------------------------------------------------------------------------ writing

    def write(self, location: str, data: bytes | pa.Buffer) -> None:
        """Hand an object over. Raises the failure of an earlier one, if it was not raised yet: this one is then not taken."""
        key = self._key(location)
        view = memoryview(data).cast("B")
        with self._changed:
            self._raise_failure()
            self._after_delete(key)
            known = self._uploads.get(key)
            if known is not None:
                if known.data != view:
                    raise _reused(location)
                return
            while self._uploads and sum(upload.data.nbytes for upload in self._uploads.values()) + view.nbytes > self._limit:
                if all(upload.error is not None for upload in self._uploads.values()):
                    # Nothing will make room before these were sent again; what fails again is raised below.
                    self._send_again()
                self._changed.wait()
                self._raise_failure()
            upload = _Upload(key, view)
            self._uploads[key] = upload
            self._send(upload)

    def put(self, location: str, data: bytes) -> None:
        """Upload an object now, beside what waits: its failure is the caller's, and nobody else's."""
        key = self._key(location)
        with self._changed:
            self._after_delete(key)
        self._put(_Upload(key, memoryview(data)))

    def flush(self) -> None:
        """Return once S3 has acknowledged everything written. Raises the first failure; call it again to send again what failed."""
        with self._changed:
            self._raise_failure()
            self._send_again()
            while any(upload.error is None for upload in self._uploads.values()):
                self._changed.wait()
            self._after_delete()
            self._raise_failure()

    def _send_again(self) -> None:
        for upload in list(self._uploads.values()):
            if upload.error is not None:
                upload.error, upload.told = None, False
                self._send(upload)

    def _raise_failure(self) -> None:
        """Raise what has failed and was not told yet: the first upload, or a delete."""
        first: BaseException | None = None
        for upload in self._uploads.values():
            if upload.error is not None and not upload.told:
                upload.told = True
                first = first or upload.error
        if first is None:
            first, self._failure = self._failure, None
        if first is not None:
            raise first

    def _send(self, upload: _Upload) -> None:
        upload.future = self._pool.submit(self._put, upload)
        upload.future.add_done_callback(lambda future: self._sent(upload, future))

    def _sent(self, upload: _Upload, future: "Future[None]") -> None:
        with self._changed:
            # Whatever it was (a panic of the library too), the flush must know.
            upload.error = None if future.cancelled() else future.exception()
            if upload.error is None and self._uploads.get(upload.key) is upload:
                del self._uploads[upload.key]
            self._changed.notify_all()

    def _put(self, upload: _Upload) -> None:
        key, data = upload.key, upload.data
        what = f"cannot write {self._location(key)}"

        def put() -> None:
            if upload.dropped:
                return
            if self._conditional and data.nbytes <= _SINGLE:
                try:
                    obstore.put(self._store, key, data, mode="create", use_multipart=False)
                except AlreadyExistsError:
                    # By us, most often: the answer to the first request was lost.
                    self._compare(key, data)
                except BaseError as error:
                    if _status(error)[0] != 501:
                        raise
                    self._conditional = False
                else:
                    return
            if self._there(key):
                self._compare(key, data)
            else:
                obstore.put(self._store, key, data, use_multipart=data.nbytes > _SINGLE, chunk_size=_PART, max_concurrency=2)

        self._try(what, put)

    def _there(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def _compare(self, key: str, data: memoryview) -> None:
        if memoryview(self._get(key, None)[0]) != data:
            raise _reused(self._location(key))

    # ------------------------------------------------------------------------------------------------------ reading

    def read(self, location: str, offset: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes from ``offset`` (all from there if None). Raises Corrupt when there are fewer."""
        key = self._key(location)
        pending = self._pending(key)
        if pending is not None:
            data, size = pending[offset:] if length is None else pending[offset : offset + length], pending.nbytes
        else:
            data, size = self._try(f"cannot read {location}", lambda: self._get(key, (offset, length)))
        if length is not None and len(data) < length:
            raise Corrupt(
                "FILE_SHORT",
                f"{location} ends {length - len(data)} bytes too early",
                f"{length} bytes at {offset} were expected, it has {size}",
                "restore the file from a backup, or load the table again",
            )
        return bytes(data)

    def open(self, location: str) -> pa.NativeFile:
        key = self._key(location)
        pending = self._pending(key)
        if pending is not None:
            return pa.BufferReader(pa.py_buffer(pending))
        tail, size = self._try(f"cannot read {location}", lambda: self._get(key, (-_BLOCK, None)))
        if len(tail) == size:
            return pa.BufferReader(pa.py_buffer(tail))
        blocks = _Blocks(lambda start, length: self._block(location, key, start, length), size, tail)
        return pa.PythonFile(blocks, mode="r")

    def _block(self, location: str, key: str, start: int, length: int) -> bytes:
        return bytes(self._try(f"cannot read {location}", lambda: self._get(key, (start, length)))[0])

    def _get(self, key: str, part: tuple[int, int | None] | None) -> tuple[Any, int]:
        """(bytes, size of the object). ``part``: (offset, length or None); a negative offset counts from the end."""
        wanted: Any = None
        if part is not None and part != (0, None):
            start, length = part
            if length == 0:
                return b"", int(obstore.head(self._store, key)["size"])
            wanted = {"suffix": -start} if start < 0 else {"offset": start} if length is None else (start, start + length)
        try:
            result = obstore.get(self._store, key, options={"range": wanted} if wanted is not None else {})
        except BaseError as error:
            if _status(error)[0] != 416:
                raise
            # Nothing there from that offset on; of an empty object there is no end either.
            return b"", int(obstore.head(self._store, key)["size"])
        first, end = result.range
        size = int(result.meta["size"])
        data = result.bytes()
        if len(data) != end - first:
            raise _Torn(f"{end - first} bytes were announced, {len(data)} came")
        return data, size

    def _pending(self, key: str) -> memoryview | None:
        with self._changed:
            upload = self._uploads.get(key)
            if upload is None:
                self._after_delete(key)
            return upload.data if upload is not None else None

    # ----------------------------------------------------------------------------------------------- deleting, listing

    def delete(self, location: str) -> None:
        """Have the object removed, in the background; one that is not there is fine."""
        key = self._key(location)
        with self._changed:
            upload = self._uploads.pop(key, None)
            if upload is not None:
                upload.dropped = True
                if upload.future is not None:
                    upload.future.cancel()
            self._doomed[key] = upload
            self._delete_next()

    def _delete_next(self) -> None:
        """Delete what is doomed by now, if nothing is being deleted. Holds the lock."""
        if self._deleting is None and self._doomed:
            batch = dict(list(self._doomed.items())[:_DELETES])
            self._deleting = self._pool.submit(self._delete, batch)
            self._deleting.add_done_callback(lambda future: self._deleted(batch, future))

    def _deleted(self, batch: Iterable[str], future: "Future[None]") -> None:
        with self._changed:
            if not future.cancelled():
                self._failure = self._failure or future.exception()
            for key in batch:
                self._doomed.pop(key, None)
            self._deleting = None
            self._delete_next()
            self._changed.notify_all()

    def _delete(self, batch: Mapping[str, _Upload | None]) -> None:
        # Uploads that were overtaken end first: an object must not appear after it was deleted.
        overtaken = (upload.future for upload in batch.values() if upload is not None)
        wait([future for future in overtaken if future is not None and not future.cancelled()])
        keys = list(batch)
        what = f"cannot delete {self._location(keys[0])}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        # One by itself where that will do: not every S3 knows the request for many.
        self._try(what, lambda: obstore.delete(self._store, keys if len(keys) > 1 else keys[0]))

    def _after_delete(self, key: str | None = None) -> None:
        """Wait until the key (None: every key) is deleted. Holds the lock."""
        while self._deleting is not None and (self._doomed if key is None else key in self._doomed):
            self._changed.wait()

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """The objects below the folder ``prefix``, by key; as of some moment after the call for each of them.

        ``s3://b/t`` never lists ``s3://b/t2``: a prefix is a folder, not the beginning of a name.
        """
        folder = self._key(prefix, folder=True)
        with self._changed:
            self._after_delete()
            while any(upload.error is None for upload in self._uploads.values()):
                self._changed.wait()
        last: str | None = None
        while True:
            page = self._try(f"cannot list {prefix}", partial(self._page, folder, last))
            yield from (StoredFile(self._location(one["path"]), one["size"], one["last_modified"].timestamp()) for one in page)
            if not page:
                return
            last = page[-1]["path"]

    def _page(self, folder: str, after: str | None) -> Any:
        return next(iter(obstore.list(self._store, folder or None, offset=after, chunk_size=_DELETES)), [])

    def close(self) -> None:
        """Give up what was not flushed, try what is left to delete once more, and let the threads go. Not to be used afterwards."""
        self._closing.set()
        with self._changed:
            for upload in self._uploads.values():
                upload.dropped = True
            self._after_delete()
        self._pool.shutdown(cancel_futures=True)

    # -------------------------------------------------------------------------------------------------------- inside

    def _try(self, what: str, call: Callable[[], _T]) -> _T:
        """The call's result; what may pass by itself is waited out for ``patience`` seconds, with growing, jittered pauses."""
        end = time.monotonic() + self._patience
        delay = _FIRST_DELAY
        while True:
            try:
                return call()
            except IcelakeError:
                raise
            except (BaseError, OSError, _Torn) as error:
                problem = self._explain(error, what)
                pause = random.uniform(delay / 2, delay)
                if not problem.temporary or time.monotonic() + pause > end or self._closing.wait(pause):
                    raise problem from error
                delay = min(2 * delay, _LONGEST_DELAY)

    def _key(self, location: str, *, folder: bool = False) -> str:
        """The object's key. Raises ProjectError for a location that is not a plain one below the warehouse."""
        text = canonical(location)
        here = text.startswith(f"{self._warehouse}/") and not location.endswith("/")
        if folder:
            here = f"{text}/".startswith(f"{self._warehouse}/")
        if not here or {"", ".", ".."} & set(text.removeprefix("s3://").split("/")):
            raise ProjectError(
                "STORAGE_LOCATION",
                f"not a plain location below {self._warehouse}: {location!r}",
                "the lake's files are below its warehouse, without . or .. or empty parts",
                "name the warehouse the lake was made with: [lake] warehouse",
            )
        return split_s3(text)[1]

    def _location(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _explain(self, error: Exception, what: str) -> IcelakeError:
        status, code = _status(error)
        why = _why(error)
        if code == "NoSuchBucket":
            return Refused("S3_NO_BUCKET", what, f"there is no bucket {self._bucket}", "make it, or correct [lake] warehouse")
        if status == 507 or code in _FULL:
            return Unreachable("S3_FULL", what, f"the S3 server has no room: {why}", "free space there; it is tried again")
        if (
            code in _DAMAGED
            or (status is None and not isinstance(error, FileNotFoundError))
            or status in (408, 409, 425, 429)
            or (status is not None and status >= 500 and status != 501)
        ):
            return Unreachable("STORAGE_UNREACHABLE", what, why, "it is tried again; if it stays, look at the S3 server and the network")
        if isinstance(error, FileNotFoundError) or status == 404:
            return Corrupt("FILE_MISSING", what, why, "restore the file from a backup, or load the table again")
        if code in _CREDENTIALS_REFUSED or status == 401:
            return Refused("S3_CREDENTIALS", what, why, "check access_key and secret_key (and session_token) in [lake.s3]")
        if code == "RequestTimeTooSkewed":
            return Refused("S3_CLOCK", what, why, "set this machine's clock right (NTP)")
        if code in _WRONG_REGION or status in (301, 307):
            return Refused("S3_REGION", what, why, "correct region and endpoint in [lake.s3]")
        if status == 403:
            return Refused(
                "STORAGE_DENIED", what, why, "let these keys get, put, list and delete objects below [lake] warehouse (the bucket's policy)"
            )
        return Refused("S3_REFUSED", what, why, "see what the S3 server says about it")


class _Torn(Exception):
    """An answer that ended before it was whole."""


class _Blocks(io.RawIOBase):
    """A large object as a seekable file (for ``pa.PythonFile``): reads at least ``_BLOCK`` bytes at once, keeps the last few."""

    def __init__(self, get: Callable[[int, int], bytes], size: int, tail: Any) -> None:
        self._get = get
        self._size = size
        self._at = 0
        self._blocks: OrderedDict[int, memoryview] = OrderedDict({size - len(tail): memoryview(tail)})

    def read(self, length: int = -1) -> bytes:
        start = self._at
        end = self._size if length < 0 else min(self._size, start + length)
        if end <= start:
            return b""
        self._at = end
        for first, block in self._blocks.items():
            if first <= start and end <= first + block.nbytes:
                self._blocks.move_to_end(first)
                return bytes(block[start - first : end - first])
        block = memoryview(self._get(start, min(self._size, max(end, start + _BLOCK)) - start))
        self._blocks[start] = block
        if len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return bytes(block[: end - start])

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._blocks.clear()
        super().close()


_CREDENTIALS_REFUSED = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidSecurity"}
)
_WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"})
_FULL = frozenset({"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"})
_DAMAGED = frozenset(
    {"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody", "MalformedXML", "NoSuchUpload"}
)
"""Error codes with status 400 or 404 that another try may not meet: the request was damaged or too slow on its way, or the parts of
an upload were cleared away meanwhile."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_OS_MESSAGE = re.compile(r'message: "([^"]+)"')


def _status(error: Exception) -> tuple[int | None, str]:
    """(HTTP status, S3 error code) an exception of the library tells of; (None, "") if there was no answer."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    return int(status[1]) if status else None, code[1] if code else ""


def _why(error: Exception) -> str:
    """The reason in a line: what S3 says, or what the connection died of. The library's own text runs to pages."""
    text = str(error)
    status, code = _status(error)
    if status is not None:
        message = _MESSAGE.search(text)
        said = ": ".join(part for part in (code, message[1] if message else "") if part)
        return f"HTTP {status}" + (f" {said}" if said else "")
    brief = text.partition("Debug source")[0].strip().rpartition(" - ")[2]
    deep = [found for found in _OS_MESSAGE.findall(text) if found not in brief]
    if "TimedOut" in text or "timed out" in text:
        deep.append("timed out")
    return ": ".join([" ".join(brief.split()), *deep[-1:]])


def _reused(location: str) -> Refused:
    return Refused(
        "LOCATION_REUSED",
        f"{location} is there already, with other bytes",
        "a location is used once; a file in the lake is never replaced",
        "find out what else writes into this folder",
    )


def _connect(bucket: str, settings: S3Settings) -> S3Store:
    settings.reveal()  # a secret that is not there is said now, not by a request

    def credentials() -> Any:
        keys = settings.reveal()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.session_token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS,
        }

    # What stands in the environment (AWS_...) must not decide where the lake is or who we are.
    where = settings.url(bucket)
    return S3Store(
        bucket,
        config={
            "endpoint": where,
            "aws_endpoint_url_s3": where,
            "region": settings.region,
            "virtual_hosted_style_request": not settings.path_style,
            "checksum_algorithm": "SHA256",
            "skip_signature": False,
            "unsigned_payload": False,
        },
        client_options={
            "allow_http": where.startswith("http://"),
            "timeout": _REQUEST,
            "connect_timeout": _CONNECT,
            "user_agent": "icelake",
        },
        retry_config={"max_retries": 0},
        credential_provider=credentials,
    )
