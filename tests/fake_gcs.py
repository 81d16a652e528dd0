"""A bucket on loopback: as much of Google Cloud Storage's JSON API as a run asks for.

https://cloud.google.com/storage/docs/json_api/v1: objects are written whole, by their
generation if asked (`ifGenerationMatch=0`: only if there is none), and read, in part
too, listed and deleted. Anything else is answered by 400.
"""

import base64
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class Refused(Exception):
    """An answer that is an error, with its HTTP status."""


class FakeStore:
    """Buckets of objects, served until `close`.

    Attributes:
      objects: `{(bucket, name): (generation, content)}`.
      denied: names of buckets that answer 403 to all.
      read_only: names of buckets that answer 403 to writing.
    """

    def __init__(self, *buckets):
        self.buckets, self.objects = set(buckets), {}
        self.denied, self.read_only = set(), set()
        self.lock, self.generations = threading.Lock(), itertools.count(1)
        self.sessions = {}
        handler = type("Handler", (_Handler,), {"store": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        # A client may hang up before it has its answer.
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def names(self, bucket):
        return sorted(name for where, name in self.objects if where == bucket)

    def check(self, bucket):
        if bucket in self.denied:
            raise Refused(403, f"no storage.objects.list access to {bucket}")
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")

    def find(self, bucket, name, query):
        self.check(bucket)
        generation, content = self.objects.get((bucket, name), (0, None))
        asked = query.get("generation", query.get("ifGenerationMatch"))
        if asked is not None and int(asked) != generation:
            raise Refused(412, "At least one of the pre-conditions did not hold.")
        if content is None:
            raise Refused(404, f"No such object: {bucket}/{name}")
        if query.get("ifGenerationNotMatch") == str(generation):
            raise Refused(304, "")
        return generation, content

    def write(self, bucket, name, content, query):
        self.check(bucket)
        if bucket in self.read_only:
            raise Refused(403, f"no storage.objects.create access to {bucket}")
        with self.lock:
            generation, _ = self.objects.get((bucket, name), (0, None))
            asked = query.get("ifGenerationMatch")
            if asked is not None and int(asked) != generation:
                raise Refused(412, "At least one of the pre-conditions did not hold.")
            self.objects[bucket, name] = next(self.generations), content
        return self.describe(bucket, name)

    def delete(self, bucket, name, query):
        with self.lock:
            self.find(bucket, name, query)
            del self.objects[bucket, name]

    def describe(self, bucket, name):
        generation, content = self.objects[bucket, name]
        when = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "crc32c": _crc32c(content),
            "updated": when,
            "timeCreated": when,
        }

    def list(self, bucket, query):
        self.check(bucket)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, prefixes = [], set()
        for name in self.names(bucket):
            late = query.get("endOffset") and name >= query["endOffset"]
            if (
                not name.startswith(prefix)
                or name < query.get("startOffset", "")
                or late
            ):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if delimiter and found:
                prefixes.add(prefix + head + delimiter)
            else:
                names.append(name)
        return {
            "kind": "storage#objects",
            "items": [self.describe(bucket, name) for name in names],
            "prefixes": sorted(prefixes),
        }


def _crc32c(content):
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: FakeStore

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        self._answer(self._post)

    def do_PUT(self):
        self._answer(self._put)

    def do_DELETE(self):
        self._answer(self._delete)

    def _answer(self, method):
        self.body = self._read()
        address = urlsplit(self.path)
        query = {name: one[-1] for name, one in parse_qs(address.query).items()}
        try:
            status, headers, content = method(address.path, query)
        except Refused as error:
            status, message = error.args
            headers = {}
            content = _json({"error": {"code": status, "message": message}})
            content = content if status != 304 else b""  # It may have none.
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _read(self):
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _get(self, path, query):
        if match := OBJECT.fullmatch(path):
            bucket, name = map(unquote, match.groups())
            generation, content = self.store.find(bucket, name, query)
            if query.get("alt") != "media":
                return 200, {}, _json(self.store.describe(bucket, name))
            headers = {
                "x-goog-generation": str(generation),
                "x-goog-hash": f"crc32c={_crc32c(content)}",
                "x-goog-stored-content-length": str(len(content)),
            }
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not asked:
                return 200, headers, content
            first = int(asked[1])
            last = min(int(asked[2] or len(content)), len(content) - 1)
            if first >= len(content):
                raise Refused(416, "The requested range cannot be satisfied.")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, headers, content[first : last + 1]
        if match := LIST.fullmatch(path):
            return 200, {}, _json(self.store.list(match[1], query))
        if match := BUCKET.fullmatch(path):
            self.store.check(match[1])
            return 200, {}, _json({"kind": "storage#bucket", "name": match[1]})
        raise Refused(400, f"GET {path}")

    def _post(self, path, query):
        if "upload_id" in query:
            return self._put(path, query)
        match = UPLOAD.fullmatch(path)
        kind = query.get("uploadType")
        if match and kind == "media":
            written = self.store.write(match[1], query["name"], self.body, query)
        elif match and kind == "multipart":
            # Contents may be any bytes: no parser of mail.
            line = self.body.split(b"\n", 1)[0].rstrip()
            described, content = (
                re.split(rb"\r?\n\r?\n", one, maxsplit=1)[1]
                for one in self.body.split(line)[1:3]
            )
            name = json.loads(described)["name"]
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            written = self.store.write(match[1], name, content, query)
        elif match and kind == "resumable":
            name = query.get("name") or json.loads(self.body)["name"]
            number = str(len(self.store.sessions))
            self.store.check(match[1])
            self.store.sessions[number] = (match[1], name, query, bytearray())
            return 200, {"Location": f"{self.store.url}{path}?upload_id={number}"}, b""
        else:
            raise Refused(400, f"POST {self.path}")
        return 200, {}, _json(written)

    def _put(self, path, query):
        if "upload_id" not in query:
            raise Refused(400, f"PUT {path}")
        bucket, name, asked, content = self.store.sessions[query["upload_id"]]
        content += self.body
        if self.headers.get("Content-Range", "/0").endswith("/*"):
            return 308, {"Range": f"bytes=0-{len(content) - 1}"}, b""
        return 200, {}, _json(self.store.write(bucket, name, bytes(content), asked))

    def _delete(self, path, query):
        match = OBJECT.fullmatch(path)
        if not match:
            raise Refused(400, f"DELETE {path}")
        self.store.delete(*map(unquote, match.groups()), query)
        return 204, {}, b""


def _json(content):
    return json.dumps(content).encode()
