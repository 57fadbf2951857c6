#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Plays a recording (record.c) back as disks after power cuts, and checks each against the guest's log.

At a cut everything that a finished sync covers is there. Of the rest each 512-byte sector is there
or not, by chance, whatever the order of the writes; names change in order (as journalling file
systems do), the last changes perhaps not.

  powercut.py --dir=DIR --before=COPY --pointer=NAME --log=LOG --initial=RAW [--cuts=N] RECORDING

DIR is where the files were (moved away by now, to --now=DIR2, so that nothing of it can be found),
COPY a copy of it from before the recording, NAME the pointer in it that names the leaf.
"""
import argparse
import collections
import os
import random
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import guestlog  # noqa: E402

SEC = 512
EVENT = struct.Struct('=IIQQQQQQ')
WRITE, SYNC, TRUNCATE, PUNCH, SYMLINK, RENAME, UNLINK = range(1, 8)
Event = collections.namedtuple('Event', 'op dev ino off size begin end data')


def read_events(path):
    raw = open(path, 'rb').read()
    at, out = 0, []
    while at < len(raw):
        op, n, dev, ino, off, size, begin, end = EVENT.unpack_from(raw, at)
        at += EVENT.size
        out.append(Event(op, dev, ino, off, size, begin, end, raw[at:at + n]))
        at += n
    return sorted(out, key=lambda e: e.begin)


class File:
    """What the disk surely has, and what is still on its way."""

    def __init__(self, content=b''):
        self.content, self.pending = bytearray(content), []

    @staticmethod
    def put(content, off, data):
        if len(content) < off:
            content.extend(bytes(off - len(content)))
        content[off:off + len(data)] = data

    @classmethod
    def apply(cls, content, e, keep=lambda: True):
        """KEEP decides for each sector."""
        if e.op == TRUNCATE:
            if keep():
                if e.size < len(content):
                    del content[e.size:]
                else:
                    content.extend(bytes(e.size - len(content)))
            return
        data = e.data
        if e.op == PUNCH:  # never beyond the end
            data = bytes(max(0, min(e.size, len(content) - e.off)))
        at = 0
        while at < len(data):
            n = min(SEC - (e.off + at) % SEC, len(data) - at)
            if keep():
                cls.put(content, e.off + at, data[at:at + n])
            at += n

    def sync(self, begin):
        for e in self.pending:
            if e.end <= begin:
                self.apply(self.content, e)
        self.pending = [e for e in self.pending if e.end > begin]

    def after_cut(self, rnd):
        content = bytearray(self.content)
        p = rnd.choice((0, 0.1, 0.5, 0.9, 1))
        whole = rnd.random() < 0.3
        for e in self.pending:
            if whole:
                if rnd.random() < p:
                    self.apply(content, e)
            else:
                self.apply(content, e, lambda: rnd.random() < p)
        return content


class Names:
    """Folder entries: changes in order, a prefix of which is durable."""

    def __init__(self):
        self.durable, self.pending = {}, []

    @staticmethod
    def apply(names, e):
        if e.op == SYMLINK:
            target, path = (os.fsdecode(x) for x in e.data.split(b'\0'))
            names[path] = target
        elif e.op == RENAME:
            old, new = (os.fsdecode(x) for x in e.data.split(b'\0'))
            names[new] = names.pop(old, (e.dev, e.ino))
        else:
            names.pop(os.fsdecode(e.data), None)

    def sync(self, begin):
        while self.pending and self.pending[0].end <= begin:
            self.apply(self.durable, self.pending.pop(0))

    def after_cut(self, rnd):
        names = dict(self.durable)
        for e in self.pending[:rnd.randint(0, len(self.pending))]:
            self.apply(names, e)
        return names


class Machine:
    def __init__(self, a):
        self.a, self.files, self.names = a, {}, Names()
        st = os.stat(a.now)
        self.folder = st.st_dev, st.st_ino
        for name in os.listdir(a.before):
            copy, now = os.path.join(a.before, name), os.path.join(a.now, name)
            if os.path.islink(copy):
                self.names.durable[os.path.join(a.dir, name)] = os.readlink(copy)
            elif os.path.isfile(copy):
                st = os.stat(now)
                self.names.durable[os.path.join(a.dir, name)] = st.st_dev, st.st_ino
                self.files[st.st_dev, st.st_ino] = File(open(copy, 'rb').read())
        self.events = read_events(a.recording)
        self.syncs = sorted((e for e in self.events if e.op == SYNC), key=lambda e: e.end)
        self.others = [e for e in self.events if e.op != SYNC]

    def advance(self, cut):
        """Everything that began by the time CUT, in order."""
        while self.syncs and self.syncs[0].end <= cut:
            s = self.syncs.pop(0)
            self.begin_until(s.end)
            if (s.dev, s.ino) == self.folder:
                self.names.sync(s.begin)
            elif (s.dev, s.ino) in self.files:
                self.files[s.dev, s.ino].sync(s.begin)
        self.begin_until(cut)

    def begin_until(self, t):
        while self.others and self.others[0].begin <= t:
            e = self.others.pop(0)
            if e.op in (SYMLINK, RENAME, UNLINK):
                self.names.pending.append(e)
            else:
                self.files.setdefault((e.dev, e.ino), File()).pending.append(e)

    def write(self, out, rnd):
        shutil.rmtree(out, ignore_errors=True)
        os.mkdir(out)
        for path, what in self.names.after_cut(rnd).items():
            if not path.startswith(self.a.dir + '/'):
                continue
            new = os.path.join(out, os.path.relpath(path, self.a.dir))
            if isinstance(what, tuple):
                with open(new, 'wb') as f:
                    f.write(self.files.get(what, File()).after_cut(rnd))
            else:
                if what.startswith(self.a.dir + '/'):
                    what = os.path.join(out, os.path.relpath(what, self.a.dir))
                os.symlink(what, new)


def choose_cuts(events, n, rnd):
    """Instants between events; those around syncs are the interesting ones."""
    times = sorted({t for e in events for t in (e.begin, e.end)})
    near = sorted({t + d for e in events if e.op in (SYNC, RENAME)
                   for t in (e.begin, e.end) for d in (-1, 1)})
    cuts = set(rnd.sample(near, min(len(near), n // 2)))
    cuts |= {rnd.randint(times[0], times[-1]) for _ in range(n - len(cuts))}
    return sorted(cuts)


def by_our_tool(leaf, scratch):
    """The same content as our own library sees it, opened as after a restart."""
    if os.path.exists(scratch):
        os.unlink(scratch)
    p = subprocess.run(['vhd-convert', '--quiet', '--type=raw', leaf, scratch],
                       stderr=subprocess.PIPE, text=True)
    if p.returncode:
        raise ValueError('vhd-convert: %s' % p.stderr.strip())
    return open(scratch, 'rb').read()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in 'dir now before pointer log initial'.split():
        p.add_argument('--' + name, required=True)
    p.add_argument('--cuts', type=int, default=100)
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('recording')
    a = p.parse_args()
    rnd = random.Random(a.seed)
    m = Machine(a)
    history = guestlog.History([a.log], open(a.initial, 'rb').read())
    out, bad = a.now + '.cut', 0
    for cut in choose_cuts(m.events, a.cuts, rnd):
        m.advance(cut)
        m.write(out, rnd)
        leaf = os.path.join(out, a.pointer)
        try:
            data = guestlog.read_disk(leaf)
            faults = history.check(data, cut, power=True)
            if by_our_tool(leaf, a.now + '.raw') != data:
                faults.append('our library reads it otherwise than the model')
        except Exception as e:
            faults = ['%s: %s' % (type(e).__name__, e)]
        if faults:
            bad += 1
            print('cut at %d, %s: %d faults' % (cut, os.readlink(leaf), len(faults)))
            print('\n'.join('  ' + f for f in faults[:5]))
            if bad == 1:
                shutil.copytree(out, a.now + '.first-bad', symlinks=True)
    print('%d events, %d cuts, %d bad' % (len(m.events), a.cuts, bad))
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main()
