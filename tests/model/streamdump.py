#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A second reader of VHD streams, written from vhd-stream(5) alone.

streamdump.py [--raw FILE] [--base FILE] [--json] [--records] [--remake FILE EDIT] STREAM

Checks everything that the page tells a receiver to check and prints what the stream holds.
  --raw FILE      write the disk as raw bytes; an increment onto a copy of --base FILE
  --json          print the summary as JSON
  --records       print one line a record: number, position, type, flags, offset, length, stored
  --token         of a stream that is cut: the token with which its sender goes on from the last CHECKPOINT
  --append        the same, but for a sender whose output is appended to the stream, cut there
  --join FILE REST
                  write to FILE the whole stream out of the cut one and the one that goes on from there
  --joined        STREAM is such a file: its END may lack the content sum
  --remake FILE EDIT
                  write a stream with right checksums whose records were edited. EDIT is one or more,
                  with commas between, of
                  drop:N, swap:N (with the next), repeat:N, type:N:TYPE:FLAGS, off:N:OFFSET,
                  len:N:LENGTH, seq:N:NUMBER, wire:N:BYTES, sum:N:HEX, insert:N:TYPE:FLAGS:LENGTH, field:N:TYPE:HEX,
                  incompat:BITS, version:MAJOR
Exit status: 0, or 76 for a stream that must be refused.
"""
import argparse
import base64
import json
import shutil
import struct
import subprocess
import sys

import xxhash

MAGIC = b"\x89VHS\r\n\x1a\n"
PREAMBLE, HEADER = 48, 40
MAX_PAYLOAD, MAX_CONTROL, MAX_SIZE = 16 << 20, 64 << 10, 64 << 40
CHUNK = 1 << 20
BEGIN, DATA, ZERO, CHECKPOINT, END, ABORT, CONTINUE = range(1, 8)
NAMES = {1: "BEGIN", 2: "DATA", 3: "ZERO", 4: "CHECKPOINT", 5: "END", 6: "ABORT", 7: "CONTINUE"}
CRITICAL, ZSTD = 1, 2
# field: (name, length); "u" numbers, "b" bytes
FIELDS = {
    1: ("kind", "<I"), 2: ("size", "<Q"), 3: ("uuid", 16), 4: ("parent_uuid", 16),
    5: ("type", "<I"), 6: ("block_size", "<I"), 7: ("geometry", 4), 8: ("creator", 8),
    9: ("timestamp", "<I"), 10: ("base_uuid", 16), 11: ("base_size", "<Q"), 12: ("base_sum", 16),
    13: ("planned_bytes", "<Q"), 14: ("planned_records", "<Q"), 15: ("source", 16),
    32: ("wire_bytes", "<Q"), 33: ("stream_sum", 16), 34: ("content_sum", 16),
    35: ("data_records", "<Q"), 36: ("zero_records", "<Q"), 37: ("data_bytes", "<Q"),
    38: ("zero_bytes", "<Q"), 39: ("checkpoints", "<Q"), 48: ("code", "<I"), 49: ("text", None),
}
NEEDED = {
    BEGIN: {"kind", "size", "type", "block_size"},
    CHECKPOINT: {"wire_bytes", "stream_sum"},
    END: {"wire_bytes", "stream_sum", "data_records", "zero_records", "data_bytes", "zero_bytes",
          "checkpoints"},
    ABORT: {"code", "text"},
    CONTINUE: {"kind", "size", "type", "block_size", "wire_bytes", "stream_sum"},
}


class Refused(Exception):
    pass


def need(ok, text):
    if not ok:
        raise Refused(text)


class ContentSum:
    """Of the disk's bytes in order; see vhd-stream(5), CONTENT SUM."""

    def __init__(self, size):
        self.size, self.part = size, bytearray()
        self.total = xxhash.xxh3_128(struct.pack("<Q", size))

    def _chunk(self, data):
        self.total.update(xxhash.xxh3_128_digest(data))

    def add(self, data):
        data = memoryview(data)
        while len(data):
            n = min(CHUNK - len(self.part), len(data))
            self.part += data[:n]
            data = data[n:]
            if len(self.part) == CHUNK:
                self._chunk(bytes(self.part))
                self.part.clear()

    def zeros(self, n):
        while n:
            k = min(n, CHUNK)
            self.add(bytes(k))
            n -= k

    def final(self):
        if self.part:
            self._chunk(bytes(self.part))
        return self.total.hexdigest()


def fields(kind, payload):
    out, known = {}, {k: v for k, v in FIELDS.items() if (k < 32) == (kind == BEGIN) or kind == CONTINUE and k < 34}
    while payload:
        need(len(payload) >= 8, "a field is cut")
        number, flags, length = struct.unpack_from("<HHI", payload)
        value, payload = payload[8:8 + length], payload[8 + length:]
        need(len(value) == length, "a field is cut")
        if number not in known:
            need(not flags & 1, "field %d is unknown and critical" % number)
            continue
        name, form = known[number]
        need(name not in out, "field %s twice" % name)
        if isinstance(form, str):
            need(length == struct.calcsize(form), "field %s has %d bytes" % (name, length))
            value = struct.unpack(form, value)[0]
        elif form:
            need(length == form, "field %s has %d bytes" % (name, length))
        out[name] = value
    missing = NEEDED[kind] - set(out)
    need(not missing, "missing: %s" % ", ".join(sorted(missing)))
    return out


def checksum(seed, head, payload):
    inner = xxhash.xxh3_64_intdigest(head[8:], seed=seed)
    return xxhash.xxh3_64_intdigest(payload, seed=inner)


class Record:
    def __init__(self, head, payload, pos):
        (self.sum, self.seq, self.off, self.len, self.stored, self.type,
         self.flags) = struct.unpack("<QQQQIHH", head)
        self.head, self.payload, self.pos = head, payload, pos
        self.false = {}  # what --remake is not to put right


def preamble(data):
    need(data[:8] == MAGIC, "not a stream")
    need(len(data) >= PREAMBLE, "cut")
    major, minor, incompat, compat = struct.unpack_from("<HHII", data, 8)
    need(struct.unpack_from("<Q", data, 40)[0] == xxhash.xxh3_64_intdigest(data[:40]),
         "damaged preamble")
    need(major == 1, "version %d.%d" % (major, minor))
    need(not incompat & ~3, "unknown incompatible features")
    return {"id": data[24:40], "incompat": incompat}


def records(data, seed, pos=PREAMBLE, seq=0):
    """The records up to END, each verified; then nothing may follow. SEQ is None: the first one tells."""
    while True:
        need(len(data) - pos >= HEADER, "cut at %d" % len(data))
        head = data[pos:pos + HEADER]
        stored = struct.unpack_from("<I", head, 32)[0]
        need(stored <= MAX_PAYLOAD, "record at %d too long" % pos)
        payload = data[pos + HEADER:pos + HEADER + stored]
        need(len(payload) == stored, "cut at %d" % len(data))
        r = Record(head, payload, pos)
        need(checksum(seed, head, payload) == r.sum, "record at %d damaged" % pos)
        need(seq is None or r.seq == seq, "record at %d out of order" % pos)
        seq = r.seq
        yield r
        pos, seq = pos + HEADER + stored, seq + 1
        if r.type == END:
            need(pos == len(data), "garbage behind the END at %d" % pos)
            return


def unpack(r):
    if not r.flags & ZSTD:
        return r.payload
    out = subprocess.run(["zstd", "-dcq"], input=r.payload, stdout=subprocess.PIPE, check=True)
    return out.stdout


class Reader:
    def __init__(self, data, raw, joined=False):
        self.data, self.raw, self.joined = data, raw, joined
        self.pre = preamble(data)
        self.sum = xxhash.xxh3_128_digest(data[:PREAMBLE])
        self.begin, self.end, self.pos, self.content = None, None, 0, None
        need(not self.pre["incompat"] & 2, "not a stream, but the rest of one")
        self.trail, self.chunk, self.spans, self.marked = bytes(16), None, [], None
        self.count = dict.fromkeys(("data_records", "zero_records", "data_bytes", "zero_bytes",
                                    "checkpoints", "skipped"), 0)

    def range(self, r):
        need(r.len > 0 and r.off + r.len <= self.begin["size"], "outside the disk")
        need(r.off >= self.pos and (self.begin["kind"] or r.off == self.pos), "out of order")
        end = r.off + r.len
        need(r.off % 512 == 0 and (end % 512 == 0 or end == self.begin["size"]), "no whole sectors")
        self.pos = r.off + r.len

    def say(self, off, length, data):
        """For the prefix sum: what was said of the disk, chunk by chunk."""
        while length:
            n = min(length, CHUNK - off % CHUNK)
            if self.chunk != off // CHUNK:
                self.close_chunk()
                self.chunk = off // CHUNK
                self.bytes = xxhash.xxh3_128()
            at = off % CHUNK
            if self.spans and self.spans[-1][1] == at:
                self.spans[-1][1] += n
            else:
                self.spans.append([at, at + n])
            self.bytes.update(data[:n] if data is not None else bytes(n))
            data = data[n:] if data is not None else None
            off, length = off + n, length - n

    def close_chunk(self):
        if self.chunk is not None:
            spans = b"".join(struct.pack("<II", *s) for s in self.spans)
            self.trail = xxhash.xxh3_128_digest(
                self.trail + struct.pack("<Q", self.chunk) + self.bytes.digest() +
                xxhash.xxh3_128_digest(spans))
        self.chunk, self.spans = None, []

    def mark(self, r):
        """Behind a CHECKPOINT between two chunks a sender can go on."""
        self.close_chunk()
        c = self.count
        self.marked = (r.seq + 1, r.pos + HEADER + r.stored, r.off, self.sum, self.trail,
                       c["data_records"], c["zero_records"], c["data_bytes"], c["zero_bytes"],
                       c["checkpoints"])

    def token(self, append):
        b, m = self.begin, self.marked
        need(m, "there is no CHECKPOINT to go on from")
        flags = append | (self.pre["incompat"] & 1) << 1 | ("source" in b) << 2
        raw = struct.pack("<BBHI16sQ16s16s16sQQQ16s16sQQQQQ", 1, flags, b["kind"], 0, self.pre["id"],
                          b["size"], b.get("uuid", bytes(16)), b.get("base_uuid", bytes(16)),
                          b.get("source", bytes(16)), *m)
        raw += struct.pack("<Q", xxhash.xxh3_64_intdigest(raw))
        return "qsm1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def marks(self, r, f):
        need(f["wire_bytes"] == r.pos, "wrong position")
        need(f["stream_sum"] == self.sum, "wrong running sum")

    def take(self, r):
        need(not r.flags & ~3, "unknown flags")
        need(not r.flags & ZSTD or (r.type == DATA and self.pre["incompat"] & 1), "compressed")
        if r.type == ZERO:
            need(r.stored == 0, "a ZERO with a payload")
        elif r.flags & ZSTD:
            need(r.stored < r.len <= MAX_PAYLOAD, "wrong length")
        else:
            need(r.stored == r.len, "wrong length")
        need(r.type in (DATA, ZERO) or r.type > ABORT or r.stored <= MAX_CONTROL, "too long")
        need(self.begin or r.type in (BEGIN, ABORT), "BEGIN is not the first")
        if r.type > ABORT or r.type == 0:
            need(not r.flags & CRITICAL, "unknown and critical")
            self.count["skipped"] += 1
        else:
            getattr(self, "on_" + NAMES[r.type].lower())(r)

    def on_begin(self, r):
        need(not self.begin, "a second BEGIN")
        b = self.begin = fields(BEGIN, r.payload)
        need(b["kind"] <= 2, "unknown kind")
        need(b["type"] <= 3, "unknown type")
        need(b["size"] <= MAX_SIZE, "too big")
        bs = b["block_size"]
        need(bs == 0 or (bs & (bs - 1) == 0 and 4096 <= bs <= 256 << 20), "block size")
        need(not b["kind"] or {"base_uuid", "base_size"} <= set(b), "increment of what?")
        need(not b["type"] or b["size"] % 512 == 0, "size of no whole sectors")
        if not b["kind"]:
            self.content = ContentSum(b["size"])
        if self.raw:
            self.raw.truncate(b["size"])

    def on_data(self, r):
        self.range(r)
        data = unpack(r)
        need(len(data) == r.len, "decompresses to another length")
        self.count["data_records"] += 1
        self.count["data_bytes"] += r.len
        self.say(r.off, r.len, data)
        if self.content:
            self.content.add(data)
        if self.raw:
            self.raw.seek(r.off)
            self.raw.write(data)

    def on_zero(self, r):
        self.range(r)
        self.count["zero_records"] += 1
        self.count["zero_bytes"] += r.len
        self.say(r.off, r.len, None)
        if self.content:
            self.content.zeros(r.len)
        if self.raw and self.begin["kind"]:
            self.raw.seek(r.off)
            left = r.len
            while left:
                left -= self.raw.write(bytes(min(left, CHUNK)))

    def on_checkpoint(self, r):
        self.marks(r, fields(CHECKPOINT, r.payload))
        need(self.pos <= r.off <= self.begin["size"], "checkpoint out of order")
        need(self.begin["kind"] or r.off == self.pos, "checkpoint out of order")
        self.pos = r.off
        self.count["checkpoints"] += 1

    def on_end(self, r):
        f = fields(END, r.payload)
        self.marks(r, f)
        need(r.off == self.begin["size"], "END elsewhere")
        need(self.begin["kind"] or self.pos == r.off, "END before the end")
        for name, n in self.count.items():
            need(name == "skipped" or f[name] == n, "counts differ: %s" % name)
        if self.content and ("content_sum" in f or not self.joined):
            need(f.get("content_sum", b"").hex() == self.content.final(), "content sum differs")
        need(self.begin["kind"] != 2 or "content_sum" in f or self.joined, "no content sum")
        self.end = f

    def on_abort(self, r):
        f = fields(ABORT, r.payload)
        raise Refused("the sender gave up: %r" % f["text"])

    def run(self, show):
        n = 0
        for r in records(self.data, xxhash.xxh3_64_intdigest(self.pre["id"])):
            if show:
                print(r.seq, r.pos, NAMES.get(r.type, r.type), r.flags, r.off, r.len, r.stored)
            self.take(r)
            self.sum = xxhash.xxh3_128_digest(self.sum + r.head)
            if r.type == CHECKPOINT and r.off and r.off % CHUNK == 0:
                self.mark(r)
            n += 1
        b = self.begin
        out = {"kind": ("whole", "increment", "difference")[b["kind"]], "size": b["size"], "records": n,
               "bytes": len(self.data), "stream_sum": self.sum.hex(), "type": b["type"],
               "uuid": b["uuid"].hex() if "uuid" in b else None,
               "content_sum": self.end["content_sum"].hex() if "content_sum" in self.end else None}
        if "base_sum" in self.begin:
            out["base_sum"] = self.begin["base_sum"].hex()
        out.update(self.count)
        return out


def join(first, rest):
    """A cut stream and the one that goes on: what the sender would have sent without the cut."""
    one, two = preamble(first), preamble(rest)
    need(two["incompat"] & 2 and one["id"] == two["id"], "does not go on with this stream")
    seed = xxhash.xxh3_64_intdigest(one["id"])
    r = next(records(rest, seed, seq=None))
    need(r.type == CONTINUE and r.flags == CRITICAL, "CONTINUE is not the first")
    f = fields(CONTINUE, r.payload)
    out, running = first[:PREAMBLE], xxhash.xxh3_128_digest(first[:PREAMBLE])
    for p in records(first, seed):
        if p.pos == f["wire_bytes"]:
            break
        running = xxhash.xxh3_128_digest(running + p.head)
        out += p.head + p.payload
        last = p
        if len(out) == f["wire_bytes"]:
            break
    need(len(out) == f["wire_bytes"] and running == f["stream_sum"], "goes on elsewhere")
    need(last.type == CHECKPOINT and last.seq + 1 == r.seq and last.off == r.off, "goes on elsewhere")
    return out + rest[PREAMBLE + HEADER + r.stored:]


# What follows makes streams that are wrong in one point and right in all others.

def reseal(recs, pre):
    """Numbers, positions, running sums and checksums as a sender would have made them."""
    pre = pre[:40] + struct.pack("<Q", xxhash.xxh3_64_intdigest(pre[:40]))
    seed, running, out = xxhash.xxh3_64_intdigest(pre[24:40]), xxhash.xxh3_128_digest(pre), pre
    for seq, r in enumerate(recs):
        payload = r.payload
        if r.type in (CHECKPOINT, END):
            payload = (struct.pack("<HHIQ", 32, 1, 8, r.false.get("wire", len(out))) +
                       struct.pack("<HHI", 33, 1, 16) + r.false.get("sum", running) + payload[40:])
        length = r.len if r.type in (DATA, ZERO) else len(payload)
        head = struct.pack("<QQQQIHH", 0, r.false.get("seq", seq), r.off, length, len(payload), r.type, r.flags)
        head = struct.pack("<Q", checksum(seed, head, payload)) + head[8:]
        running = xxhash.xxh3_128_digest(running + head)
        out += head + payload
    return out


def edit(recs, pre, how):
    op, *args = how.split(":")
    n = int(args[0])
    if op == "drop":
        del recs[n]
    elif op == "swap":
        recs[n], recs[n + 1] = recs[n + 1], recs[n]
    elif op == "repeat":
        recs.insert(n, recs[n])
    elif op == "type":
        recs[n].type, recs[n].flags = int(args[1]), int(args[2])
    elif op == "off":
        recs[n].off = int(args[1])
    elif op == "len":
        recs[n].len = int(args[1])
    elif op in ("seq", "wire"):
        recs[n].false[op] = int(args[1])
    elif op == "sum":
        recs[n].false[op] = bytes.fromhex(args[1])
    elif op == "insert":
        size = int(args[3])
        head = struct.pack("<QQQQIHH", 0, 0, 0, size, size, int(args[1]), int(args[2]))
        recs.insert(n, Record(head, bytes(size), 0))
    elif op == "field":
        number, value = int(args[1]), bytes.fromhex(args[2])
        out, payload, done = b"", recs[n].payload, False
        while payload:
            t, f, length = struct.unpack_from("<HHI", payload)
            if t == number:
                out += struct.pack("<HHI", t, f, len(value)) + value
                done = True
            else:
                out += payload[:8 + length]
            payload = payload[8 + length:]
        if not done:
            out += struct.pack("<HHI", number, 1, len(value)) + value
        recs[n].payload = out
    elif op == "incompat":
        pre = pre[:12] + struct.pack("<I", n) + pre[16:]
    elif op == "version":
        pre = pre[:8] + struct.pack("<H", n) + pre[10:]
    else:
        sys.exit("unknown edit " + op)
    return pre


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--raw")
    p.add_argument("--base")
    p.add_argument("--json", action="store_true")
    p.add_argument("--records", action="store_true")
    p.add_argument("--remake", nargs=2)
    p.add_argument("--join", nargs=2)
    p.add_argument("--joined", action="store_true")
    p.add_argument("--token", action="store_true")
    p.add_argument("--append", action="store_true")
    p.add_argument("stream")
    a = p.parse_args()
    with (sys.stdin.buffer if a.stream == "-" else open(a.stream, "rb")) as f:
        data = f.read()
    try:
        if a.remake:
            pre = data[:PREAMBLE]
            recs = list(records(data, xxhash.xxh3_64_intdigest(preamble(data)["id"])))
            for how in a.remake[1].split(","):
                pre = edit(recs, pre, how)
            with open(a.remake[0], "wb") as f:
                f.write(reseal(recs, pre))
            return 0
        if a.join:
            with open(a.join[1], "rb") as f:
                data = join(data, f.read())
            with open(a.join[0], "wb") as f:
                f.write(data)
            return 0
        if a.token or a.append:
            reader = Reader(data, None)
            try:
                reader.run(False)
            except Refused:
                pass
            print(reader.token(a.append))
            return 0
        raw = None
        if a.raw:
            if a.base:
                shutil.copyfile(a.base, a.raw)
            raw = open(a.raw, "r+b" if a.base else "wb")
        out = Reader(data, raw, a.joined).run(a.records)
    except Refused as e:
        print("streamdump: %s" % e, file=sys.stderr)
        return 76
    if a.json:
        print(json.dumps(out))
    elif not a.records:
        for k, v in out.items():
            print("%-14s %s" % (k, v))
    return 0


sys.exit(main())
