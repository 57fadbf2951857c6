# SPDX-License-Identifier: BSD-2-Clause
"""What a guest wrote, when, and what of it a disk may and must hold.

Every sector written carries its number and a version, so that what is found on a disk tells which
write it came from. Times are CLOCK_MONOTONIC in nanoseconds, as in the recordings of record.c.
No two writes to one sector are ever under way at the same time.
"""
import functools
import hashlib
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'model'))

SEC = 512
HEAD = struct.Struct('<8sQQ')
MAGIC = b'qsmguest'
ZERO = 0  # the version of a zeroed sector
NEVER = 1 << 63


@functools.lru_cache(None)
def stamp(sector, version):
    head = HEAD.pack(MAGIC, sector, version)
    return head + (hashlib.blake2b(head).digest() * 8)[:SEC - len(head)]


class Op:
    """kind: w(rite), z(ero), f(lush). end is NEVER while it is not acknowledged."""
    __slots__ = 'kind start end first n version fua'.split()

    def __init__(self, kind, start, end=NEVER, first=0, n=0, version=ZERO, fua=False):
        self.kind, self.start, self.end = kind, start, end
        self.first, self.n, self.version, self.fua = first, n, version, fua

    def line(self):
        return '%s %d %d %d %d %d %d\n' % (self.kind, self.start, self.end, self.first, self.n,
                                           self.version, self.fua)

    @classmethod
    def parse(cls, line):
        f = line.split()
        n = [int(x) for x in f[1:]]
        return cls(f[0], *n[:5], fua=bool(n[5]))


class History:
    def __init__(self, logs, initial=None):
        self.sectors = {}
        self.flushes = []
        self.initial = initial  # the raw disk before
        ops = []
        for name in logs:
            with open(name) as f:
                ops += [Op.parse(line) for line in f]
        ops.sort(key=lambda o: o.start)
        for o in ops:
            if o.kind == 'f':
                self.flushes.append(o)
            for s in range(o.first, o.first + o.n):
                self.sectors.setdefault(s, []).append(o)

    def initial_range(self, a, b):
        return self.initial[a * SEC:b * SEC] if self.initial else bytes((b - a) * SEC)

    def initial_sector(self, s):
        return self.initial_range(s, s + 1)

    @staticmethod
    def content(s, op):
        return bytes(SEC) if op.kind == 'z' else stamp(s, op.version)

    def flushed_until(self, cut, power):
        """Everything acknowledged by then is safe."""
        return max((f.start for f in self.flushes if f.end <= cut), default=-1) if power else cut

    def allowed(self, s, cut, sure):
        """Contents that sector S may have when everything ended at the time CUT.

        What was acknowledged is safe from the death of a process; from a power cut only what was
        flushed (acknowledged before an acknowledged flush began: SURE), or written with FUA.
        """
        ops = [o for o in self.sectors.get(s, ()) if o.start <= cut]
        floor = 0
        for i, o in enumerate(ops):
            if o.end <= sure or (o.fua and o.end <= cut):
                floor = i + 1
        out = [self.content(s, o) for o in ops[max(floor - 1, 0):]]
        if floor == 0:
            out.append(self.initial_sector(s))
        return out

    def check(self, data, cut=NEVER - 1, power=False):
        """The faults of DATA, a whole disk, as a list of texts."""
        bad, at = [], 0
        sure = self.flushed_until(cut, power)
        for s in sorted(self.sectors) + [len(data) // SEC]:
            if data[at * SEC:s * SEC] != self.initial_range(at, s):
                bad += [self.describe(u, data, cut, sure) for u in range(at, s)
                        if data[u * SEC:(u + 1) * SEC] != self.initial_sector(u)]
            if s * SEC < len(data) and \
                    data[s * SEC:(s + 1) * SEC] not in self.allowed(s, cut, sure):
                bad.append(self.describe(s, data, cut, sure))
            at = s + 1
        return bad

    def describe(self, s, data, cut, sure):
        found = data[s * SEC:(s + 1) * SEC]
        magic, sector, version = HEAD.unpack(found[:HEAD.size])
        what = 'version %d of sector %d' % (version, sector) if magic == MAGIC else \
            'zeros' if found == bytes(SEC) else found[:16].hex()
        if magic == MAGIC and found != stamp(sector, version):
            what += ' (torn)'
        if found == self.initial_sector(s):
            what += ' (its first content)'
        want = [o.version for o in self.sectors.get(s, ())
                if self.content(s, o) in self.allowed(s, cut, sure)]
        return 'sector %d: found %s, wanted one of %s' % (s, what, want or 'the first content')

    def frozen_cut(self, data):
        """DATA is a snapshot: was there one instant that divides the writes in it from the others?

        Returns the interval in which that instant lies; None: there is none, writes were lost
        or reordered.
        """
        after, before = 0, NEVER
        for s, ops in self.sectors.items():
            found = data[s * SEC:(s + 1) * SEC]
            at = [i for i, o in enumerate(ops) if self.content(s, o) == found]
            if found == self.initial_sector(s):
                at.append(-1)
            if not at:
                return None
            if len(at) > 1:
                continue  # zeroed more than once: it does not tell when
            i = at[0]
            if i >= 0:
                after = max(after, ops[i].start)
            if i + 1 < len(ops):
                before = min(before, ops[i + 1].end)
        return (after, before) if after < before else None


def read_disk(path, dirs=()):
    import vhdmodel
    return vhdmodel.bytes_of(path, tuple(dirs))
