#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A second implementation of the VHD format, slow and plain, for tests to compare with.

It shares nothing with lib/: what the two agree on was understood twice. It reads fixed, dynamic
and differencing disks of every maker, writes chains with chosen parameters (block size,
alignment, creator, locators, footer of 511 bytes, raw parent), and damages them in chosen ways.

  cat DISK                    what the guest sees, on stdout or (sparse) in --out=FILE
  sha DISK                    sha256 of that
  cmp DISK DISK               are they equal for the guest? holes are skipped
  info FILE                   structures as JSON
  check [--strict] FILE...    every broken rule, a line each; --strict: the rules for our own files
  make FILE ...               a new disk with given parameters and random content
  write FILE ...              random guest writes to a disk that exists
  get FILE FIELD...           values of fields (names: see poke)
  poke FILE FIELD=VALUE...    change fields; checksums are made right again unless --keep-sums
  hold FILE read|write        hold QEMU's image locks until stdin ends
  contentsum RAW              the content sum of vhd-sum(1), reckoned with xxhsum
"""
import argparse
import array
import fcntl
import hashlib
import json
import os
import random
import stat
import struct
import subprocess
import sys

SEC = 512
FREE = 0xFFFFFFFF
ONES = 0xFFFFFFFFFFFFFFFF
FOOT = '>8sIIQI4sI4sQQHBBII16sBB426s'
HEAD = '>8sQQIIII16sII512s192s256s'
FOOT_FIELDS = ('cookie features version data_offset timestamp creator creator_version os original '
               'size cylinders heads spt type checksum uid saved hidden reserved').split()
HEAD_FIELDS = ('cookie data_offset table_offset version entries block checksum puid ptime '
               'reserved1 name locators reserved2').split()
LOC_FIELDS = 'code space length reserved offset'.split()
KIND = {2: 'fixed', 3: 'dynamic', 4: 'differencing'}
CREATORS = {  # code, version, host system
    'win': (b'win ', 0x000A0000, b'Wi2k'), 'win7': (b'win ', 0x00060001, b'Wi2k'),
    'vpc': (b'vpc ', 0x00010000, b'Wi2k'), 'vs': (b'vs  ', 0x00010000, b'Wi2k'),
    'tap': (b'tap\0', 0x00010003, bytes(4)), 'qemu': (b'qemu', 0x00050003, b'Wi2k'),
    'qem2': (b'qem2', 0x00050003, b'Wi2k'), 'vbox': (b'vbox', 0x00040003, b'Wi2k'),
    'd2v': (b'd2v\0', 0x00010000, b'Wi2k'), 'none': (bytes(4), 0x000A0000, bytes(4)),
}


class Broken(Exception):
    """The disk cannot be read."""


def up(n, to):
    return (n + to - 1) // to * to


def csum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xFFFFFFFF


def chs(size):
    t = min(size // SEC, 65535 * 16 * 255)
    if t >= 65535 * 16 * 63:
        s, h, m = 255, 16, t // 255
    else:
        s = 17
        m = t // s
        h = max((m + 1023) // 1024, 4)
        if m >= h * 1024 or h > 16:
            s, h, m = 31, 16, t // 31
        if m >= h * 1024:
            s, h, m = 63, 16, t // 63
    return m // h, h, s


def num(text):
    text = str(text)
    units = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}
    if text[-1:].upper() in units:
        return int(text[:-1], 0) * units[text[-1].upper()]
    return int(text, 0)


class Struct:
    """Named fields over the original bytes."""

    def __init__(self, raw, fmt, names, sum_at):
        self.raw, self.fmt, self.names, self.sum_at = bytes(raw), fmt, names, sum_at
        self.__dict__.update(zip(names, struct.unpack(fmt, self.raw)))

    def sum_ok(self):
        return csum(self.raw, self.sum_at) == self.checksum

    def pack(self, fix=True):
        b = struct.pack(self.fmt, *[getattr(self, n) for n in self.names])
        if fix:
            c = struct.pack('>I', csum(b, self.sum_at))
            b = b[:self.sum_at] + c + b[self.sum_at + 4:]
        return b


def footer_of(raw):
    return Struct(raw.ljust(512, b'\0'), FOOT, FOOT_FIELDS, 64)


def header_of(raw):
    return Struct(raw, HEAD, HEAD_FIELDS, 36)


class Locator:
    def __init__(self, raw, fd):
        self.__dict__.update(zip(LOC_FIELDS, struct.unpack('>4sIIIQ', raw)))
        self.data = b''
        if self.code != bytes(4) and self.length <= 65536:
            self.data = os.pread(fd, self.length, self.offset)

    def used(self):
        return self.code != bytes(4)

    def room(self):
        return self.space * SEC if self.space < SEC else self.space

    def text(self):
        if self.code in (b'W2ru', b'W2ku'):
            return self.data.decode('utf-16-le', 'replace').rstrip('\0')
        return self.data.decode('utf-8', 'surrogateescape').rstrip('\0')


class Layer:
    """One file. raw=True: whatever its bytes say."""

    def __init__(self, path, raw=False, write=False):
        self.path = path
        self.real = os.path.realpath(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Broken('%s: not a regular file' % path)
        self.fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        self.length = os.fstat(self.fd).st_size
        self.kind, self.uid, self.puid = 'raw', None, None
        self.size = self.length
        self.head, self.bat, self.locs, self.block = None, [], [], 0
        self.foot = None if raw else self.pick_footer()
        if self.foot:
            self.parse()

    def close(self):
        os.close(self.fd)

    def pick_footer(self):
        def good(f):
            return f.cookie == b'conectix' and f.version >> 16 == 1 and f.type in KIND
        n = self.length
        self.end_at = n - 512
        ends = []
        if n >= 512:
            ends.append((n - 512, footer_of(os.pread(self.fd, 512, n - 512))))
        if n % SEC == 511:
            ends.append((n - 511, footer_of(os.pread(self.fd, 511, n - 511))))
        front = footer_of(os.pread(self.fd, 512, 0)) if n >= 512 else None
        self.front = front
        self.end = None
        for at, f in ends:
            if good(f):
                self.end, self.end_at = f, at
        if self.end and self.end.sum_ok():
            return self.end
        if front and good(front) and front.sum_ok() and front.type != 2:
            return front
        # A wrong sum is only a warning for reading, if all the fields make sense.
        return self.end or (front if front and good(front) and front.type != 2 else None)

    def parse(self):
        f = self.foot
        self.kind, self.uid = KIND[f.type], f.uid
        self.size = f.size // SEC * SEC
        if f.type == 2:
            return
        if f.data_offset + 1024 > self.length:
            raise Broken('%s: header outside the file' % self.path)
        h = self.head = header_of(os.pread(self.fd, 1024, f.data_offset))
        if h.cookie != b'cxsparse':
            raise Broken('%s: no header cookie' % self.path)
        if h.block & h.block - 1 or not 512 <= h.block <= 256 << 20:
            raise Broken('%s: block size %d' % (self.path, h.block))
        self.block = h.block
        self.bmlen = up((h.block // SEC + 7) // 8, SEC)
        need = (self.size + h.block - 1) // h.block
        if h.entries < need or h.table_offset + need * 4 > self.length:
            raise Broken('%s: table of %d entries at %d is too short' % (self.path, h.entries,
                                                                        h.table_offset))
        self.bat = array.array('I')
        self.bat.frombytes(os.pread(self.fd, need * 4, h.table_offset))
        if sys.byteorder == 'little':
            self.bat.byteswap()
        self.locs = [Locator(h.locators[i:i + 24], self.fd) for i in range(0, 192, 24)]
        self.puid = h.puid if f.type == 4 else None

    def bitmap(self, b):
        return os.pread(self.fd, self.bmlen, self.bat[b] * SEC).ljust(self.bmlen, b'\0')

    def areas(self):
        """(from, to) where the layer may hold anything but zeros or its parent."""
        if self.kind in ('raw', 'fixed'):
            pos = 0
            while pos < self.size:
                try:
                    a = os.lseek(self.fd, pos, os.SEEK_DATA)
                except OSError:
                    return
                pos = os.lseek(self.fd, a, os.SEEK_HOLE)
                if a < self.size:
                    yield a // SEC * SEC, min(up(pos, SEC), self.size)
        else:
            for b, e in enumerate(self.bat):
                if e != FREE:
                    yield b * self.block, min((b + 1) * self.block, self.size)

    def read_into(self, buf, off, below):
        """Fills buf with the disk's bytes from off on; below(buf, off) does what is not here."""
        if self.kind in ('raw', 'fixed'):
            n = max(0, min(len(buf), self.size - off))
            d = os.pread(self.fd, n, off)
            buf[:len(d)] = d
            return
        pos = 0
        while pos < len(buf):
            b, o = divmod(off + pos, self.block)
            n = min(len(buf) - pos, self.block - o)
            part = buf[pos:pos + n]
            if off + pos >= self.size:
                pass
            elif self.bat[b] == FREE:
                below(part, off + pos)
            else:
                self.read_block(part, b, o, below)
            pos += n

    def read_block(self, buf, b, o, below):
        bits = self.bitmap(b)
        at = self.bat[b] * SEC + self.bmlen
        s, end = o // SEC, (o + len(buf)) // SEC
        while s < end:
            here = bits[s >> 3] & 0x80 >> (s & 7)
            t = s + 1
            while t < end and bool(bits[t >> 3] & 0x80 >> (t & 7)) == bool(here):
                t += 1
            part = buf[s * SEC - o:t * SEC - o]
            if here:
                d = os.pread(self.fd, len(part), at + s * SEC)
                part[:len(d)] = d
            else:
                below(part, b * self.block + s * SEC)
            s = t

    def parent_names(self):
        """Relative paths to try, in the order of vhd-format §8.6."""
        rel, base = [], []
        for code in (b'W2ru', b'Wi2r', b'MacX', b'W2ku'):
            for l in self.locs:
                if l.code != code:
                    continue
                t = l.text()
                if code == b'MacX':
                    t = t[7:] if t.startswith('file://') else t
                else:
                    t = t.replace('\\', '/')
                if t.startswith('./') or t.startswith('../') or code in (b'W2ru', b'Wi2r'):
                    rel.append(t)
                base.append(t.split('/')[-1])
        name = self.head.name.decode('utf-16-be', 'replace').split('\0')[0]
        base.append(name.replace('\\', '/').split('/')[-1])
        return rel, base


class Chain:
    """A leaf and its parents: what the guest sees."""

    def __init__(self, path, dirs=(), raw=False):
        self.layers = [Layer(path, raw)]
        try:
            while self.layers[-1].kind == 'differencing':
                self.layers.append(self.find(self.layers[-1], dirs))
                if len(self.layers) > 256:
                    raise Broken('%s: chain too long' % path)
        except BaseException:
            self.close()
            raise
        self.size = self.layers[0].size

    def find(self, child, dirs):
        home = os.path.dirname(child.real)
        rel, base = child.parent_names()
        names = [os.path.join(home, r) for r in rel]
        for d in (home,) + tuple(dirs):
            names += [os.path.join(d, r) for r in rel] + [os.path.join(d, b) for b in base]
        for n in names:
            if not os.path.isfile(n) or any(os.path.samefile(n, l.path) for l in self.layers):
                continue
            p = Layer(n, raw=child.puid == bytes(16))
            if child.puid == bytes(16) or p.uid == child.puid:
                return p
            p.close()
        raise Broken('%s: no parent among %s' % (child.path, names))

    def close(self):
        for l in self.layers:
            l.close()

    def read_into(self, buf, off, i=0):
        if i < len(self.layers):
            l = self.layers[i]
            l.read_into(buf, off, lambda b, o: self.read_into(b, o, i + 1))

    def read(self, off, n):
        buf = bytearray(n)
        self.read_into(memoryview(buf), off)
        return bytes(buf)

    def areas(self):
        """Sorted, disjoint (from, to) outside which the disk is zero."""
        out = []
        for a, b in sorted(x for l in self.layers for x in l.areas() if x[0] < self.size):
            b = min(b, self.size)
            if out and a <= out[-1][1]:
                out[-1][1] = max(out[-1][1], b)
            else:
                out.append([a, b])
        return out

    def pieces(self, step=1 << 20):
        for a, b in self.areas():
            for o in range(a, b, step):
                yield o, self.read(o, min(step, b - o))


def bytes_of(path, dirs=(), raw=False):
    """The whole disk; for small ones."""
    c = Chain(path, dirs, raw)
    try:
        return c.read(0, c.size)
    finally:
        c.close()


def sha_of(path, dirs=(), raw=False):
    c = Chain(path, dirs, raw)
    h, pos, zeros = hashlib.sha256(), 0, bytes(1 << 20)
    try:
        for o, d in list(c.pieces()) + [(c.size, b'')] if c.size < 1 << 26 else c.pieces():
            while pos < o:
                n = min(o - pos, len(zeros))
                h.update(zeros[:n])
                pos += n
            h.update(d)
            pos += len(d)
        while pos < c.size:
            n = min(c.size - pos, len(zeros))
            h.update(zeros[:n])
            pos += n
        return h.hexdigest()
    finally:
        c.close()


def first_difference(a, b):
    """None, or a text. The arguments are Chains."""
    if a.size != b.size:
        return 'sizes differ: %d and %d' % (a.size, b.size)
    for x, y in ((a, b), (b, a)):
        for o, d in x.pieces():
            e = y.read(o, len(d))
            if d != e:
                for i in range(0, len(d), SEC):
                    if d[i:i + SEC] != e[i:i + SEC]:
                        return 'sector %d (offset %d) differs' % ((o + i) // SEC, o + i)
    return None


# --- writing -----------------------------------------------------------------------------------

class Editor(Layer):
    """Guest writes in place, without any care for crashes."""

    def __init__(self, path, align=4096):
        super().__init__(path, write=True)
        self.align = align
        self.dirty = False
        if self.bat:
            self.pos = self.first_free()

    def first_free(self):
        h, f = self.head, self.foot
        ends = [f.data_offset + 1024, h.table_offset + up(h.entries * 4, SEC)]
        ends += [l.offset + max(l.room(), up(l.length, SEC)) for l in self.locs if l.used()]
        bm = self.batmap()
        if bm:
            ends += [bm[0] + SEC, bm[1] + bm[2]]
        ends += [e * SEC + self.bmlen + self.block for e in self.bat if e != FREE]
        return max(ends)

    def batmap(self):
        """(offset of header, offset of map, bytes of map) of a XenServer file, or None."""
        if self.foot.creator[:3] != b'tap':
            return None
        at = up(self.head.table_offset + self.head.entries * 4, SEC)
        raw = os.pread(self.fd, SEC, at)
        if raw[:8] != b'tdbatmap':
            return None
        off, sec = struct.unpack('>QI', raw[8:20])
        return at, off, sec * SEC

    def write(self, off, data):
        if self.kind in ('raw', 'fixed'):
            os.pwrite(self.fd, data, off)
            return
        pos = 0
        while pos < len(data):
            b, o = divmod(off + pos, self.block)
            n = min(len(data) - pos, self.block - o)
            if self.bat[b] == FREE:
                self.alloc(b)
            os.pwrite(self.fd, data[pos:pos + n], self.bat[b] * SEC + self.bmlen + o)
            bits = bytearray(self.bitmap(b))
            for s in range(o // SEC, (o + n) // SEC):
                bits[s >> 3] |= 0x80 >> (s & 7)
            os.pwrite(self.fd, bits, self.bat[b] * SEC)
            pos += n

    def alloc(self, b):
        at = self.pos
        if self.align > SEC:
            at = up(at + self.bmlen, self.align) - self.bmlen
        self.bat[b] = at // SEC
        self.pos = at + self.bmlen + self.block
        self.dirty = True
        # Windows and its likes set all bits of a dynamic disk's block, XenServer only its own.
        whole = self.kind == 'dynamic' and self.foot.creator[:3] != b'tap'
        os.pwrite(self.fd, (b'\xff' if whole else b'\0') * self.bmlen, at)
        os.ftruncate(self.fd, max(self.length, at))
        os.pwrite(self.fd, bytes(SEC), at + self.bmlen)
        zero = bytes(1 << 16)
        for o in range(0, self.block, len(zero)):
            os.pwrite(self.fd, zero[:min(len(zero), self.block - o)], at + self.bmlen + o)

    def finish(self):
        if self.bat and self.dirty:
            t = array.array('I', self.bat)
            if sys.byteorder == 'little':
                t.byteswap()
            os.pwrite(self.fd, t.tobytes(), self.head.table_offset)
            end = self.pos
            if self.align > SEC:
                end = up(end + SEC, self.align) - SEC
            os.ftruncate(self.fd, self.pos)
            os.pwrite(self.fd, self.foot.raw[:511 if self.end_at + 511 == self.length else 512], end)
        bm = self.batmap() if self.bat else None
        if bm:
            m = bytearray(bm[2])
            for b, e in enumerate(self.bat):
                n = self.block // SEC
                full = b'\xff' * (n // 8) if n >= 8 else bytes([0xFF00 >> n & 0xFF])
                if e != FREE and self.bitmap(b)[:len(full)] == full:
                    m[b >> 3] |= 0x80 >> (b & 7)
            os.pwrite(self.fd, m, bm[1])
            os.pwrite(self.fd, struct.pack('>I', ~sum(m) & 0xFFFFFFFF), bm[0] + 24)
        self.close()


def v4(rnd):
    """A random UUID in Windows' byte order: the version is in byte 7."""
    b = bytearray(rnd.randbytes(16))
    b[7] = b[7] & 15 | 0x40
    b[8] = b[8] & 63 | 0x80
    return bytes(b)


def create(path, size, kind='dynamic', block=2 << 20, align=4096, creator='win', uid=None,
           parent=None, raw_parent=False, text=None, locators='W2ku,W2ru', first_slot=0,
           name=None, entries=None, gap=0, foot511=False, hidden=0, saved=0, ptime=0,
           rnd=random, geometry=None, absolute='C:\\vhd\\', space=512):
    """An empty disk. parent: path of the parent (read for its UUID and size)."""
    code, ver, osc = CREATORS[creator]
    uid = uid or v4(rnd)
    c, h, s = geometry or chs(size)
    typ = {'fixed': 2, 'dynamic': 3, 'differencing': 4}[kind]
    foot = struct.pack(FOOT, b'conectix', 2, 0x10000, ONES if typ == 2 else 512, 700000000, code,
                       ver, osc, size, size, c, h, s, typ, 0, uid, saved, hidden, b'')
    foot = footer_of(foot).pack()
    tail = foot[:511] if foot511 else foot
    with open(path, 'wb') as f:
        if typ == 2:
            f.truncate(size)
            f.seek(size)
            f.write(tail)
            return
        puid, locs, pos = bytes(16), [], 1536 + gap
        if typ == 4:
            if not raw_parent:
                puid = parent if isinstance(parent, bytes) else Layer(parent).uid
            if text is None:
                text = '.\\' + os.path.basename(parent)
        need = (size + block - 1) // block
        entries = need if entries is None else entries
        table = pos
        pos = table + up(max(entries, need) * 4, SEC)
        if creator == 'tap':
            nsec = max(1, ((need + 7) // 8 + SEC - 1) // SEC)
            f.seek(pos)
            m = bytes(nsec * SEC)
            f.write(struct.pack('>8sQIII', b'tdbatmap', pos + SEC, nsec, 0x10002, FREE).ljust(SEC, b'\0') + m)
            pos += SEC + len(m)
        base = (text or '').replace('\\', '/').split('/')[-1]
        if typ == 4:
            for lc in filter(None, locators.split(',')):
                data = {'W2ru': text.encode('utf-16-le', 'surrogatepass'),
                        'W2ku': (absolute + base).encode('utf-16-le', 'surrogatepass'),
                        'MacX': b'file://' + text.replace('\\', '/').encode(),
                        'Wi2r': text.encode('cp1252', 'replace'),
                        'Wi2k': (absolute + base).encode('cp1252', 'replace')}[lc]
                room = up(len(data), SEC)
                f.seek(pos)
                f.write(data.ljust(room, b'\0'))
                locs.append((lc.encode(), 1 if space == 1 else room, len(data), pos))
                pos += room
        ll = bytes(24 * first_slot) + b''.join(struct.pack('>4sIIIQ', a, b, n, 0, o) for a, b, n, o in locs)
        label = base if name is None else name
        head = struct.pack(HEAD, b'cxsparse', ONES, table, 0x10000, entries, block, 0, puid, ptime, 0,
                           label.encode('utf-16-be', 'surrogatepass')[:510] if typ == 4 else b'', ll, b'')
        f.seek(0)
        f.write(foot + header_of(head).pack())
        f.seek(table)
        f.write(b'\xff' * up(max(entries, need) * 4, SEC))
        end = pos
        if align > SEC:
            end = up(end + SEC, align) - SEC
        f.seek(end)
        f.write(tail)


def fill(path, rnd, count, unit, raw=None, align=4096, zeros=6, seq=False):
    """count random writes of unit bytes, one in ZEROS of zeros; the same into raw."""
    e = Editor(path, align)
    r = None
    if raw:
        r = os.open(raw, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(r, e.size)
    n = e.size // unit
    for i in range(count):
        o = (i % n if seq else rnd.randrange(n)) * unit
        d = bytes(unit) if zeros and rnd.randrange(zeros) == 0 else rnd.randbytes(unit)
        e.write(o, d)
        if r is not None:
            os.pwrite(r, d, o)
    e.finish()
    if r is not None:
        os.close(r)


# --- rules -------------------------------------------------------------------------------------

def check(path, strict=False):
    """The broken rules of vhd-format §22, as texts."""
    bad = []
    try:
        l = Layer(path)
    except Broken as e:
        return [str(e)]
    say = bad.append
    try:
        if not l.foot:
            return ['no footer']
        f, h = l.foot, l.head
        if not l.end:
            say('no footer at the end')
        elif not l.end.sum_ok():
            say('checksum of the end footer')
        if f.type != 2:
            if l.front.cookie != b'conectix':
                say('no front footer')
            elif l.end and l.front.raw != l.end.raw:
                say('the two footers differ')
        if f.features & 2 == 0:
            say('feature bit 1 is clear')
        if f.size % SEC:
            say('size is no multiple of 512')
        if strict:
            strict_footer(l, say)
        if f.type == 2:
            if l.end_at != f.size:
                say('fixed: %d bytes of data for a size of %d' % (l.end_at, f.size))
            return bad
        if not h.sum_ok():
            say('checksum of the header')
        if h.data_offset != ONES:
            say('data offset of the header')
        if h.version != 0x10000:
            say('version of the header')
        blocks(l, say, strict)
        if strict:
            strict_header(l, say)
    finally:
        l.close()
    return bad


def strict_footer(l, say):
    f = l.foot
    if f.features != 2 or f.version != 0x10000:
        say('features %x, version %x' % (f.features, f.version))
    if f.data_offset != (ONES if f.type == 2 else 512):
        say('data offset %x' % f.data_offset)
    if f.original != f.size:
        say('original size %d, current %d' % (f.original, f.size))
    if (f.cylinders, f.heads, f.spt) not in (chs(f.size), (65535, 16, 255)):
        say('geometry %d/%d/%d' % (f.cylinders, f.heads, f.spt))
    if f.saved or any(f.reserved):
        say('saved state or reserved bytes')
    if f.uid == bytes(16):
        say('no uuid')
    if f.os != b'Wi2k':
        say('creator system %r' % f.os)
    if not f.timestamp:
        say('no time of creation')


def strict_header(l, say):
    h, f = l.head, l.foot
    need = len(l.bat)
    if h.entries != need:
        say('%d table entries, %d needed' % (h.entries, need))
    pad = os.pread(l.fd, up(need * 4, SEC) - need * 4, h.table_offset + need * 4)
    if pad.strip(b'\xff'):
        say('padding of the table')
    if h.reserved1 or any(h.reserved2):
        say('reserved bytes of the header')
    for b, e in enumerate(l.bat):
        if e != FREE and (e * SEC + l.bmlen) % 4096:
            say('block %d is not aligned' % b)
            break
    if f.type == 3:
        if any(x.used() for x in l.locs) or any(h.puid) or any(h.name):
            say('a dynamic disk with a parent')
        return
    codes = [x.code for x in l.locs if x.used()]
    if sorted(codes)[:2] != [b'W2ku', b'W2ru']:
        say('locators %r' % codes)
    if len(set(codes)) != len(codes):
        say('a locator code twice')
    for x in l.locs:
        if not x.used():
            if x.space or x.length or x.offset or x.reserved:
                say('an unused locator is not zero')
            continue
        if x.space % SEC or x.space < SEC or x.length > x.space or x.reserved or x.offset % SEC:
            say('locator %s: space %d, length %d, offset %d' % (x.code, x.space, x.length, x.offset))
        if x.data.endswith(b'\0\0') and x.code[:2] == b'W2':
            say('locator %s ends in NUL' % x.code)
    t = [x.text() for x in l.locs if x.code == b'W2ru']
    if t and not t[0].startswith(('.\\', '..\\')):
        say('relative locator %r' % t[0])
    if t:
        name = h.name.decode('utf-16-be', 'replace').split('\0')[0]
        if not t[0].split('\\')[-1].startswith(name) or not name:
            say('header name %r, relative locator %r' % (name, t[0]))


def blocks(l, say, strict):
    h, f = l.head, l.foot
    end = l.end_at if l.end else l.length
    areas = [(0, 512, 'front footer'), (f.data_offset, f.data_offset + 1024, 'header'),
             (h.table_offset, h.table_offset + up(len(l.bat) * 4, SEC), 'table')]
    if h.table_offset % SEC:
        say('table offset %d' % h.table_offset)
    if f.creator[:3] == b'tap':
        at = up(h.table_offset + h.entries * 4, SEC)
        raw = os.pread(l.fd, SEC, at)
        if raw[:8] == b'tdbatmap':
            areas += batmap_areas(l, at, raw, say)
    for i, x in enumerate(l.locs):
        if x.used():
            areas.append((x.offset, x.offset + max(x.length, 1), 'locator %d' % i))
            if x.length > 65536 or x.offset + x.length > end:
                say('locator %d outside the file' % i)
    for b, e in enumerate(l.bat):
        if e == FREE:
            continue
        a = e * SEC
        areas.append((a, a + l.bmlen + l.block, 'block %d' % b))
        if a + l.bmlen + l.block > end:
            say('block %d ends at %d, behind %d' % (b, a + l.bmlen + l.block, end))
        elif f.type == 3:
            stray(l, b, say)
    areas.sort()
    for (a, b, n), (c, d, m) in zip(areas, areas[1:]):
        if c < b:
            say('%s (%d..%d) overlaps %s (%d..%d)' % (n, a, b, m, c, d))


def batmap_areas(l, at, raw, say):
    off, nsec, _, want = struct.unpack('>QIII', raw[8:28])
    m = os.pread(l.fd, nsec * SEC, off)
    if want != ~sum(m) & FREE:
        say('checksum of the batmap')
    for b, e in enumerate(l.bat):
        if b >> 3 < len(m) and m[b >> 3] & 0x80 >> (b & 7):
            n = min(l.block, l.size - b * l.block) // SEC
            bits = l.bitmap(b) if e != FREE else b'\0'
            if e == FREE or any(not bits[s >> 3] & 0x80 >> (s & 7) for s in range(n)):
                say('batmap: block %d is said to be full' % b)
    return [(at, at + SEC, 'batmap header'), (off, off + nsec * SEC, 'batmap')]


def stray(l, b, say):
    """In a dynamic disk a sector whose bit is clear holds zeros (vhd-format §10)."""
    bits = l.bitmap(b)
    n = min(l.block, l.size - b * l.block) // SEC
    full = b'\xff' * (n // 8)
    if bits[:len(full)] == full and n % 8 == 0:
        return
    for s in range(n):
        if not bits[s >> 3] & 0x80 >> (s & 7):
            if any(os.pread(l.fd, SEC, l.bat[b] * SEC + l.bmlen + s * SEC)):
                say('block %d sector %d: data without its bit' % (b, s))
                return


# --- fields by name ----------------------------------------------------------------------------

def value(text, old):
    if not isinstance(old, bytes):
        return num(text)
    if text.startswith('hex:'):
        return bytes.fromhex(text[4:])
    return text.encode('utf-8').ljust(len(old) if len(old) < 16 else 0, b'\0')


def get(l, field):
    part, _, rest = field.partition('.')
    if part == 'foot':
        v = getattr(l.foot, rest)
    elif part == 'head':
        v = getattr(l.head, rest)
    elif part == 'bat':
        v = l.bat[int(rest)]
    elif part == 'loc':
        i, _, n = rest.partition('.')
        v = l.locs[int(i)].text() if n == 'text' else getattr(l.locs[int(i)], n)
    elif part == 'blocks':
        v = sum(e != FREE for e in l.bat)
    elif part == 'used':
        v = '\n'.join(str(b) for b, e in enumerate(l.bat) if e != FREE)
    elif part == 'bits':
        v = sum(bin(x).count('1') for b, e in enumerate(l.bat) if e != FREE for x in l.bitmap(b))
    elif part == 'name':
        v = l.head.name.decode('utf-16-be', 'replace').split('\0')[0]
    elif part == 'end':
        v = l.end_at
    elif part == 'data':  # offset of the data of block N
        v = l.bat[int(rest)] * SEC + l.bmlen
    else:
        raise SystemExit('unknown field %s' % field)
    return v.hex() if isinstance(v, bytes) and field.endswith('uid') else v


def poke(path, changes, which, fix):
    l = Layer(path, write=True)
    feet = []
    if which in ('both', 'front') and l.foot.type != 2:
        feet.append((0, l.front))
    if which in ('both', 'end') and l.end:
        feet.append((l.end_at, l.end))
    foot_dirty = head_dirty = False
    late = []
    for c in changes:
        field, _, v = c.partition('=')
        part, _, rest = field.partition('.')
        if part == 'foot':
            foot_dirty = True
            for _, f in feet:
                setattr(f, rest, value(v, getattr(f, rest)))
        elif part == 'head':
            head_dirty = True
            setattr(l.head, rest, value(v, getattr(l.head, rest)))
        elif part == 'bat':
            late.append((struct.pack('>I', num(v)), l.head.table_offset + 4 * int(rest)))
        elif part == 'loc':
            i, _, n = rest.partition('.')
            x = l.locs[int(i)]
            if n == 'text':
                d = v.encode('utf-16-le') if x.code[:2] == b'W2' else v.encode()
                late.append((d, x.offset))
                x.length = len(d)
            else:
                setattr(x, n, value(v, getattr(x, n)))
            raw = bytearray(l.head.locators)
            raw[24 * int(i):24 * int(i) + 24] = struct.pack(
                '>4sIIIQ', *[getattr(x, k) for k in LOC_FIELDS])
            l.head.locators, head_dirty = bytes(raw), True
        elif part == 'bit':  # bit.BLOCK.SECTOR=0|1
            b, s = map(int, rest.split('.'))
            bits = bytearray(l.bitmap(b))
            bits[s >> 3] = bits[s >> 3] & ~(0x80 >> (s & 7)) | (0x80 >> (s & 7) if int(v) else 0)
            late.append((bytes(bits), l.bat[b] * SEC))
        elif part == 'byte':
            late.append((bytes([num(v)]), num(rest)))
        else:
            raise SystemExit('unknown field %s' % field)
    if head_dirty:
        os.pwrite(l.fd, l.head.pack(fix), l.foot.data_offset if 'foot.data_offset' not in
                  [c.partition('=')[0] for c in changes] else 512)
    if foot_dirty:
        for at, f in feet:
            os.pwrite(l.fd, f.pack(fix)[:min(512, l.length - at)], at)
    for d, at in late:
        os.pwrite(l.fd, d, at)
    l.close()


def info(path):
    l = Layer(path)
    out = {'type': l.kind, 'size': l.size, 'length': l.length}
    if l.foot:
        f = l.foot
        out.update(uuid=f.uid.hex(), creator=f.creator.decode('latin-1'), original=f.original,
                   geometry=[f.cylinders, f.heads, f.spt], hidden=f.hidden, saved=f.saved,
                   checksum_ok=f.sum_ok())
    if l.head:
        out.update(block=l.block, entries=l.head.entries, table=l.head.table_offset,
                   allocated=sum(e != FREE for e in l.bat), parent_uuid=l.head.puid.hex(),
                   name=get(l, 'name'), header_checksum_ok=l.head.sum_ok(),
                   locators=[[x.code.decode('latin-1'), x.space, x.length, x.offset, x.text()]
                             for x in l.locs if x.used()])
    l.close()
    return out


def hold(path, mode):
    """QEMU's protocol: byte 100+p for a permission taken, 200+p for one not shared."""
    read, write, unchanged, resize = range(4)
    fd = os.open(path, os.O_RDWR)
    mine = [read] if mode == 'read' else [read, write, unchanged, resize]
    for byte in [100 + p for p in mine] + [200 + write, 200 + resize]:
        fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, byte, 1, 0))  # F_OFD_SETLK
    print('held', flush=True)
    sys.stdin.read()


def contentsum(path):
    """vhd-sum(1), The sum. The hashes themselves are those of xxhsum(1)."""
    size = os.path.getsize(path)

    def xxh(data):
        p = subprocess.run(['xxhsum', '-H2'], input=data, stdout=subprocess.PIPE, check=True)
        return bytes.fromhex(p.stdout.split()[0].decode())
    total, known = struct.pack('<Q', size), {}
    with open(path, 'rb') as f:
        for o in range(0, size, 1 << 20):
            d = f.read(min(1 << 20, size - o))
            k = hashlib.sha256(d).digest()
            if k not in known:
                known[k] = xxh(d)
            total += known[k]
    return xxh(total).hex()


def sparse_copy(chain, path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.ftruncate(fd, chain.size)
    for o, d in chain.pieces():
        os.pwrite(fd, d, o)
    os.close(fd)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest='cmd', required=True)
    for name in 'cat sha cmp'.split():
        s = sub.add_parser(name)
        s.add_argument('disk', nargs=2 if name == 'cmp' else 1)
        s.add_argument('--parent-dir', action='append', default=[])
        s.add_argument('--raw', action='store_true')
        s.add_argument('--out')
    sub.add_parser('info').add_argument('file')
    sub.add_parser('contentsum').add_argument('file')
    s = sub.add_parser('check')
    s.add_argument('--strict', action='store_true')
    s.add_argument('file', nargs='+')
    s = sub.add_parser('hold')
    s.add_argument('file')
    s.add_argument('mode', choices=['read', 'write'])
    for name in 'get poke'.split():
        s = sub.add_parser(name)
        s.add_argument('file')
        s.add_argument('fields', nargs='+')
        s.add_argument('--which', choices=['front', 'end', 'both'], default='both')
        s.add_argument('--keep-sums', action='store_true')
    for name in 'make write'.split():
        s = sub.add_parser(name)
        s.add_argument('file')
        s.add_argument('--seed', type=int, default=1)
        s.add_argument('--fill', default='0:512', help='COUNT:UNIT random writes')
        s.add_argument('--seq', action='store_true', help='in ascending order, from 0 on')
        s.add_argument('--zeros', type=int, default=6)
        s.add_argument('--raw', help='do the same to this raw file')
        s.add_argument('--align', type=num, default=4096)
    m = sub.choices['make']
    m.add_argument('--size', type=num)
    m.add_argument('--kind', choices=['fixed', 'dynamic', 'differencing'], default='dynamic')
    m.add_argument('--block', type=num, default=2 << 20)
    m.add_argument('--creator', choices=sorted(CREATORS), default='win')
    m.add_argument('--parent')
    m.add_argument('--raw-parent', action='store_true')
    m.add_argument('--parent-uuid', type=bytes.fromhex)
    m.add_argument('--uuid', type=bytes.fromhex)
    m.add_argument('--text', help='relative locator')
    m.add_argument('--name', help='name in the header')
    m.add_argument('--absolute', default='C:\\vhd\\')
    m.add_argument('--locators', default='W2ku,W2ru')
    m.add_argument('--first-slot', type=int, default=0)
    m.add_argument('--space', type=int, default=512)
    m.add_argument('--entries', type=num)
    m.add_argument('--gap', type=num, default=0)
    m.add_argument('--foot511', action='store_true')
    m.add_argument('--hidden', type=int, default=0)
    m.add_argument('--saved', type=int, default=0)
    return p.parse_args()


def make(a):
    rnd = random.Random(b'%d %s' % (a.seed, os.path.basename(os.fsencode(a.file))))  # a UUID of its own
    parent = a.parent_uuid or a.parent
    if a.size is None:
        p = Layer(a.parent, raw=a.raw_parent)
        a.size = p.size
        p.close()
    create(a.file, a.size, a.kind if not (parent or a.raw_parent) else 'differencing', a.block,
           a.align, a.creator, a.uuid, parent,
           a.raw_parent, a.text, a.locators, a.first_slot, a.name, a.entries, a.gap, a.foot511,
           a.hidden, a.saved, rnd=rnd, absolute=a.absolute, space=a.space)


def main():
    a = arguments()
    if a.cmd in ('cat', 'sha', 'cmp'):
        chains = [Chain(d, a.parent_dir, a.raw and i == 0) for i, d in enumerate(a.disk)]
        if a.cmd == 'sha':
            print(sha_of(a.disk[0], a.parent_dir, a.raw))
        elif a.cmd == 'cmp':
            d = first_difference(*chains)
            if d:
                raise SystemExit(d)
        elif a.out:
            sparse_copy(chains[0], a.out)
        else:
            for o in range(0, chains[0].size, 1 << 20):
                sys.stdout.buffer.write(chains[0].read(o, min(1 << 20, chains[0].size - o)))
    elif a.cmd == 'info':
        print(json.dumps(info(a.file), indent=1))
    elif a.cmd == 'contentsum':
        print(contentsum(a.file))
    elif a.cmd == 'check':
        bad = [f + ': ' + t for f in a.file for t in check(f, a.strict)]
        print('\n'.join(bad))
        sys.exit(1 if bad else 0)
    elif a.cmd == 'hold':
        hold(a.file, a.mode)
    elif a.cmd == 'get':
        l = Layer(a.file)
        for f in a.fields:
            print(get(l, f))
    elif a.cmd == 'poke':
        poke(a.file, a.fields, a.which, not a.keep_sums)
    else:
        if a.cmd == 'make':
            make(a)
        n, _, unit = a.fill.partition(':')
        if int(n):
            fill(a.file, random.Random(a.seed + 1), int(n), num(unit), a.raw, a.align, a.zeros, a.seq)
        elif a.raw and a.cmd == 'make':
            with open(a.raw, 'ab') as f:
                f.truncate(a.size)


if __name__ == '__main__':
    try:
        main()
    except (Broken, OSError) as e:
        raise SystemExit('vhdmodel: %s' % e)
