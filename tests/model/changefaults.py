#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Interrupts vhd-reparent and vhd-resize in every way, and looks whether anything was lost.

  changefaults.py kill KIND    killed before each system call that writes
  changefaults.py error KIND   each such call fails: no space, or a bad disk
  changefaults.py power KIND   the power goes: of what was not synced, any part reaches the disk

After each: the disk opens and shows the old or the new content, and is sound once it was opened;
the same command finishes; nothing is left behind. After an error, the content is the old one.
"""
import argparse
import os
import random
import shutil

import mergefaults as mf
import vhdmodel

LONG = 'm' * 251 + '.vhd'  # its relative path takes more than one sector
SIZE = 1 << 20
MANY = 129 << 16  # in blocks of 64 KiB, one more than a sector of the table holds
KINDS = {  # what is made, and the command
    'link': dict(child={}, moved='other.vhd', cmd=['vhd-reparent', '--parent=work/other.vhd']),
    'space': dict(child={}, moved=LONG, cmd=['vhd-reparent', '--parent=work/' + LONG]),
    'macx': dict(child=dict(creator='tap', locators='MacX,W2ku,W2ru'), moved=LONG,
                 cmd=['vhd-reparent', '--parent=work/' + LONG]),
    'grow': dict(disk=dict(), size=SIZE + 9 * 512),
    'table': dict(disk=dict(), size=MANY),
    'table-last': dict(disk=dict(align=512), size=20 << 20, empty=0),
    'table-child': dict(child={}, size=MANY),
    'table-tap': dict(disk=dict(creator='tap'), size=MANY),
    'map-tap': dict(disk=dict(creator='tap', entries=5000), size=4200 << 16),
    'child-tap': dict(child=dict(creator='tap'), uneven=True, size=SIZE),
    'grow-fixed': dict(disk=dict(kind='fixed'), size=SIZE + 9 * 512),
    'foot511': dict(disk=dict(foot511=True), size=MANY),
    'fixed511': dict(disk=dict(kind='fixed', foot511=True), size=SIZE + 512),
    'shrink': dict(disk=dict(), size=SIZE // 2 + 512, empty=SIZE // 2 + 512),
    'shrink-fixed': dict(disk=dict(kind='fixed'), size=SIZE // 2, empty=SIZE // 2),
    'shrink-tap': dict(disk=dict(creator='tap'), size=SIZE // 2, empty=SIZE // 2),
}


class Scene:
    """A folder with one disk, its parent where there is one, and the command that changes it."""

    def __init__(self, kind, seed):
        k = self.k = KINDS[kind]
        self.kind, self.dir = kind, os.path.abspath('before')
        os.mkdir(self.dir)
        rnd = random.Random(seed)
        first = SIZE - 5 * 512 if k.get('uneven') else SIZE
        name = 'leaf.avhd' if 'child' in k else 'disk.vhd'
        disk, base, raw = (os.path.join(self.dir, n) for n in (name, 'base.vhd', 'raw'))
        if 'child' in k:
            vhdmodel.create(base, first, block=65536, rnd=rnd)
            vhdmodel.fill(base, rnd, 8, 4096, raw)
            vhdmodel.create(disk, first, 'differencing', parent=base, block=65536, rnd=rnd, **k['child'])
        else:
            vhdmodel.create(disk, first, block=65536, rnd=rnd, **k['disk'])
        if k.get('empty') != 0:
            vhdmodel.fill(disk, rnd, 12, 4096, raw, zeros=0)
        else:  # nothing behind the table
            open(raw, 'wb').write(bytes(first))
        if k.get('uneven'):
            self.whole_last_block(disk, raw)
        if k.get('empty'):
            self.zero_behind(disk, raw, k['empty'])
        self.old = open(raw, 'rb').read()
        os.unlink(raw)
        if k.get('moved'):  # under its old name it can still be found
            os.link(base, os.path.join(self.dir, k['moved']))
        self.new = self.old[:k.get('size', first)].ljust(k.get('size', first), b'\0')
        self.path = 'work/' + name
        self.cmd = k.get('cmd', ['vhd-resize', '-q', '--size=%d' % k.get('size', 0)]) + [self.path]
        self.sums = {}
        for n in 'old', 'new':
            with open(n + '.raw', 'wb') as f:
                f.write(getattr(self, n))
            self.sums[n] = mf.tool('vhd-sum', n + '.raw').stdout.split()[0]

    @staticmethod
    def whole_last_block(disk, raw):
        """All bits of the last block are set, also those behind the disk's end, over rubbish."""
        e = vhdmodel.Editor(disk)
        b = len(e.bat) - 1
        data = random.Random(7).randbytes(e.size - b * e.block)
        e.write(b * e.block, data)
        e.finish()
        with open(raw, 'r+b') as f:
            f.seek(b * 65536)
            f.write(data)
        e = vhdmodel.Editor(disk)
        end = e.bat[b] * 512 + e.bmlen + len(data)
        os.pwrite(e.fd, b'\xff' * 16, e.bat[b] * 512)
        os.pwrite(e.fd, b'junk' * 128 * 5, end)
        e.finish()

    @staticmethod
    def zero_behind(disk, raw, at):
        e = vhdmodel.Editor(disk)
        for o in range(at, e.size, 512):
            if e.kind == 'fixed' or e.bat[o // e.block] != vhdmodel.FREE:
                e.write(o, bytes(512))
        e.finish()
        with open(raw, 'r+b') as f:
            f.seek(at)
            f.write(bytes(e.size - at))

    def fresh(self):
        shutil.rmtree('work', ignore_errors=True)
        shutil.copytree(self.dir, 'work')

    def sum(self):
        return mf.tool('vhd-sum', '--parent-dir=work', self.path)

    def check(self, when, allowed=('old', 'new')):
        def fail(text):
            raise SystemExit('%s, %s: %s' % (self.kind, when, text))
        p = self.sum()
        if p.returncode:
            fail('it does not open: %s' % p.stderr)
        if p.stdout.split()[0] not in [self.sums[a] for a in allowed]:
            fail('it shows neither old nor new content')
        bad = vhdmodel.check(self.path)
        if bad and 'uneven' not in self.k and not (self.kind.endswith('511') and self.old != self.new):
            fail('it is not sound: %s' % bad)
        p = mf.tool(*self.cmd)
        if p.returncode:
            fail('the same command does not finish it: %d %s' % (p.returncode, p.stderr))
        self.finished(fail)

    def finished(self, fail):
        try:
            seen = vhdmodel.bytes_of(self.path)
        except vhdmodel.Broken as e:
            fail('the model cannot read it: %s' % e)
        if seen != self.new:
            n = next((i for i in range(min(len(seen), len(self.new))) if seen[i] != self.new[i]), -1)
            fail('wrong after the second run: %d bytes of %d, from %d on' % (len(seen), len(self.new), n))
        p = mf.tool('vhd-sum', self.path)
        if p.stdout.split()[:1] != [self.sums['new']]:
            fail('another sum after the second run, %s' % p.stderr)
        bad = vhdmodel.check(self.path)
        if bad:
            fail('not sound after the second run: %s' % bad)
        left = sorted(n for n in os.listdir('work') if not (n[0] == '.' and n.endswith('.tmp')))
        if left != sorted(os.listdir(self.dir)):
            fail('left behind: %s' % left)


def calls(scene):
    scene.fresh()
    out = mf.traced(scene.cmd)
    scene.finished(lambda t: (_ for _ in ()).throw(SystemExit('not interrupted at all: %s' % t)))
    return out


def kill(scene, most):
    for call, n in mf.sample(calls(scene), most):
        scene.fresh()
        p = mf.strace(['-e', 'trace=' + call, '-e', 'inject=%s:signal=KILL:when=%d' % (call, n)], scene.cmd)
        if p.returncode not in (137, -9):
            raise SystemExit('not killed at %s %d: %s' % (call, n, p.stderr))
        scene.check('killed at %s %d' % (call, n))


def error(scene, most):
    kinds = ('pwrite64', 'fallocate', 'ftruncate', 'fsync', 'fdatasync', 'rename', 'renameat2', 'unlink')
    for call, n in mf.sample([c for c in calls(scene) if c[0] in kinds], most):
        for name, want in (('ENOSPC', 73), ('EIO', 74)):
            if name == 'ENOSPC' and ('sync' in call or call == 'unlink'):
                continue
            scene.fresh()
            p = mf.strace(['-e', 'trace=' + call, '-e', 'inject=%s:error=%s:when=%d' % (call, name, n)], scene.cmd)
            when = '%s at %s %d' % (name, call, n)
            if p.returncode == 0 and call == 'fallocate':
                scene.finished(lambda t: (_ for _ in ()).throw(SystemExit('%s: %s' % (when, t))))
                continue
            if p.returncode != want:
                raise SystemExit('%s, %s: status %d, wanted %d: %s' % (scene.kind, when, p.returncode, want,
                                                                      p.stderr))
            scene.check(when)


def power(scene, most, seed):
    rnd, ops = random.Random(seed), []
    scene.fresh()
    os.link(scene.path, 'same')  # what is saved beside a file belongs to one inode
    mf.strace(mf.TRACE, scene.cmd)
    mf.parse('trace', ops)
    for _ in range(most):
        cut = mf.moment(ops, 0, rnd)
        mf.lose_power(scene, ops, cut, rnd)
        with open('same', 'r+b') as f, open(scene.path, 'rb') as left:
            f.truncate(0)
            f.write(left.read())
        os.unlink(scene.path)
        os.link('same', scene.path)
        scene.check('power lost after %d of %d calls (%s)' % (cut, len(ops), ops[cut - 1][:3]))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('how', choices=['kill', 'error', 'power'])
    p.add_argument('kind', choices=sorted(KINDS))
    p.add_argument('--most', type=int, default=1000, help='so many interruptions, evenly chosen')
    p.add_argument('--seed', type=int, default=1)
    a = p.parse_args()
    scene = Scene(a.kind, a.seed)
    if a.how == 'power':
        power(scene, a.most, a.seed)
    else:
        {'kill': kill, 'error': error}[a.how](scene, a.most)


if __name__ == '__main__':
    main()
