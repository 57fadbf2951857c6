#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""A guest made of threads, each with its own connection to the disk (needs python3-libnbd).

  load SOCKET LOG      numbered writes, zeroes, flushes; what was acknowledged and when goes to LOG
  check LOG... DISK    is every acknowledged write on the disk? (--initial RAW)
  frozen LOG... DISK   is DISK what the guest's disk was at one instant?
  model SOCKET RAW     random reads, writes, zeroes, trims and extents, compared with RAW, which
                       holds the same content at the start and at the end

load ends after --seconds and --least operations, at SIGTERM, or when the server dies (--until-death:
only at the last two).
"""
import argparse
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guestlog  # noqa: E402
from guestlog import NEVER, Op, SEC, stamp  # noqa: E402

STRIPE = 128  # sectors: the unit in which the disk is dealt out to the threads


def connect(path):
    import nbd
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_unix(path)
    return h


class Worker(threading.Thread):
    def __init__(self, a, index, stop):
        super().__init__(daemon=True)
        self.a, self.index, self.stop_flag = a, index, stop
        self.rnd = random.Random('%s/%d' % (a.seed, index))
        self.ops, self.error = [], None
        self.h = connect(a.socket)
        self.stripes = range(index, self.h.get_size() // SEC // STRIPE, a.threads)

    def place(self, align):
        """A range inside one of this thread's stripes."""
        n = align or self.rnd.randint(1, 16)
        at = self.rnd.randrange(0, STRIPE - n + 1)
        if align:
            at -= at % align
        hot = len(self.stripes) if self.rnd.random() < 0.5 else max(1, len(self.stripes) // 8)
        return self.stripes[self.rnd.randrange(hot)] * STRIPE + at, n

    def run(self):
        import nbd
        try:
            while not self.stop_flag.is_set():
                self.step()
                if self.a.pause:
                    time.sleep(self.a.pause)
        except nbd.Error as e:
            self.error = e

    def step(self):
        import nbd
        p = self.rnd.random()
        if p < self.a.flush:
            o = Op('f', time.monotonic_ns())
            self.ops.append(o)
            self.h.flush()
            o.end = time.monotonic_ns()
            return
        first, n = self.place(8 if p < 0.8 else 0)
        now = time.monotonic_ns()
        fua = self.rnd.random() < 0.05
        if p > 0.93:
            o = Op('z', now, NEVER, first, n, guestlog.ZERO, fua)
            self.ops.append(o)
            self.h.zero(n * SEC, first * SEC, nbd.CMD_FLAG_FUA if fua else 0)
        else:
            o = Op('w', now, NEVER, first, n, now * 64 + self.index, fua)
            data = b''.join(stamp(s, o.version) for s in range(first, first + n))
            o.start = time.monotonic_ns()
            self.ops.append(o)
            self.h.pwrite(data, first * SEC, nbd.CMD_FLAG_FUA if fua else 0)
        o.end = time.monotonic_ns()


def load(a):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    workers = [Worker(a, i, stop) for i in range(a.threads)]
    for w in workers:
        w.start()
    end = time.monotonic() + a.seconds
    while any(w.is_alive() for w in workers) and not stop.is_set():
        if not a.until_death and time.monotonic() > end and sum(len(w.ops) for w in workers) >= a.least:
            stop.set()
        time.sleep(0.01)
    for w in workers:
        w.join()
    with open(a.log, 'w') as f:
        for w in workers:
            f.writelines(o.line() for o in w.ops)
    errors = [w.error for w in workers if w.error]
    done = sum(o.end != NEVER for w in workers for o in w.ops)
    print('%d acknowledged, %d not' % (done, sum(len(w.ops) for w in workers) - done))
    if errors and not a.until_death:
        sys.exit('guest: %s' % errors[0])


def check(a):
    initial = open(a.initial, 'rb').read() if a.initial else None
    h = guestlog.History(a.logs, initial)
    bad = h.check(guestlog.read_disk(a.disk))
    print('\n'.join(bad[:10]))
    sys.exit('%d bad sectors' % len(bad) if bad else None)


def frozen(a):
    initial = open(a.initial, 'rb').read() if a.initial else None
    cut = guestlog.History(a.logs, initial).frozen_cut(guestlog.read_disk(a.disk))
    if not cut:
        sys.exit('%s: no instant of the guest\'s disk: writes are lost or reordered' % a.disk)
    print('window of %d us' % ((cut[1] - cut[0]) // 1000))


class Modeller(Worker):
    """Compares with a model in memory; the threads' stripes are disjoint."""

    def __init__(self, a, index, stop, raw):
        super().__init__(a, index, stop)
        self.raw, self.left = raw, a.ops
        self.faults = []

    def run(self):
        try:
            while self.left > 0 and not self.faults:
                self.left -= 1
                self.step()
        except Exception as e:  # whatever it is, the test has failed
            self.error = e

    def expect(self, first, n, what):
        got = self.h.pread(n * SEC, first * SEC)
        if got != self.raw[first * SEC:(first + n) * SEC]:
            self.faults.append('%s: sectors %d+%d differ' % (what, first, n))

    def step(self):
        import nbd
        first, n = self.place(self.rnd.choice((0, 0, 1, 8, 64, STRIPE)))
        a, b = first * SEC, (first + n) * SEC
        flags = nbd.CMD_FLAG_FUA if self.rnd.random() < 0.02 else 0
        kind = self.rnd.choice('wwwwrrrzzte')
        if kind == 'w':
            data = self.rnd.randbytes(b - a)
            self.h.pwrite(data, a, flags)
            self.raw[a:b] = data
        elif kind == 'z':
            no_hole = nbd.CMD_FLAG_NO_HOLE if self.rnd.random() < 0.5 else 0
            self.h.zero(b - a, a, flags | no_hole)
            self.raw[a:b] = bytes(b - a)
            self.expect(first, n, 'after zero')
        elif kind == 't':
            self.h.trim(b - a, a, flags)
            self.trimmed(first, n)
        elif kind == 'e':
            self.extents(a, b)
        else:
            self.expect(first, n, 'read')
        if self.rnd.random() < 0.01:
            self.h.flush()

    def trimmed(self, first, n):
        """Each trimmed sector is as it was, or zero."""
        got = self.h.pread(n * SEC, first * SEC)
        for i in range(n):
            a = (first + i) * SEC
            new = got[i * SEC:(i + 1) * SEC]
            if new not in (bytes(SEC), self.raw[a:a + SEC]):
                self.faults.append('after trim: sector %d is neither old nor zero' % (first + i))
            self.raw[a:a + SEC] = new

    def extents(self, a, b):
        runs = []
        self.h.block_status(b - a, a, lambda ctx, off, ext, err: runs.extend(ext) or 0)
        at = a
        for length, flags in zip(runs[::2], runs[1::2]):
            end = min(at + length, b)
            if flags & 2 and any(self.raw[at:end]):
                self.faults.append('extents: %d+%d is not zero' % (at, end - at))
            at += length
        if at <= a:
            self.faults.append('extents: nothing told about %d' % a)


def model(a):
    raw = bytearray(open(a.raw, 'rb').read())
    workers = [Modeller(a, i, None, raw) for i in range(a.threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    faults = [f for w in workers for f in w.faults] + [str(w.error) for w in workers if w.error]
    h = connect(a.socket)
    for off in range(0, len(raw), 1 << 20):
        n = min(1 << 20, len(raw) - off)
        if h.pread(n, off) != raw[off:off + n]:
            faults.append('in the end: MiB %d differs' % (off >> 20))
    h.flush()
    with open(a.raw, 'wb') as f:
        f.write(raw)
    print('\n'.join(faults[:10]))
    sys.exit('%d faults' % len(faults) if faults else None)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest='cmd', required=True)
    s = sub.add_parser('load')
    s.add_argument('socket')
    s.add_argument('log')
    s.add_argument('--seconds', type=float, default=2)
    s.add_argument('--least', type=int, default=0, help='operations, on a machine that is slow')
    s.add_argument('--until-death', action='store_true')
    s.add_argument('--flush', type=float, default=0.05, help='share of flushes')
    s.add_argument('--pause', type=float, default=0, help='seconds between two requests of a thread')
    for name in 'check', 'frozen':
        s = sub.add_parser(name)
        s.add_argument('logs', nargs='+')
        s.add_argument('disk')
        s.add_argument('--initial')
    s = sub.add_parser('model')
    s.add_argument('socket')
    s.add_argument('raw')
    s.add_argument('--ops', type=int, default=200, help='for each thread')
    for name in 'load', 'model':
        sub.choices[name].add_argument('--threads', type=int, default=8)
        sub.choices[name].add_argument('--seed', default='1')
    return p.parse_args()


if __name__ == '__main__':
    args = arguments()
    {'load': load, 'check': check, 'frozen': frozen, 'model': model}[args.cmd](args)
