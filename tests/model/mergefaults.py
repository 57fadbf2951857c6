#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Interrupts vhd-merge in every way, and looks whether anything was lost.

  mergefaults.py kill KIND    killed before each system call that writes
  mergefaults.py error KIND   each such call fails: no space, or a bad disk
  mergefaults.py power KIND   the power goes: of what was not synced, any part reaches the disk
  mergefaults.py twice KIND   killed, started again, and then the power goes

After each: the child shows what it always showed, to the model and to our tools; the parent
alone shows old or new content or does not open; the same command finishes; and the result is sound.

What a power loss leaves is reckoned from a trace: all that a file's last fsync covered, and of
later writes any subset of sectors. Renames and removals are kept in order, as journals do.
"""
import argparse
import os
import random
import re
import shutil
import subprocess
import sys

import vhdmodel

CALLS = ('pwrite64 pwritev pwritev2 fallocate ftruncate copy_file_range fsync fdatasync '
         'sync_file_range rename renameat renameat2 unlink unlinkat linkat').split()
KINDS = {  # parent, child
    'same': (dict(block=65536), dict(block=65536)),
    'blocks': (dict(block=32768), dict(block=131072)),
    'large': (dict(block=262144), dict(block=16384)),
    'tap': (dict(block=65536, creator='tap'), dict(block=65536, creator='tap')),
    'old': (dict(block=65536, align=512, creator='vpc'), dict(block=65536, align=512)),
    'foot511': (dict(block=65536, foot511=True), dict(block=65536)),
    'fixed': (dict(kind='fixed'), dict(block=65536)),
    'raw': (None, dict(block=65536)),
    'middle': (dict(block=65536), dict(block=65536)),
    'grown': (dict(block=4096), dict(block=32768)),  # the child is larger, the parent's BAT must move
    'grownfixed': (dict(kind='fixed'), dict(block=32768)),
    'deep': (dict(block=65536), dict(block=16384)),  # two layers between, merged with --to
}


class Scene:
    """A folder with leaf.avhd on base.vhd, and how both read."""

    def __init__(self, kind, seed):
        self.kind = kind
        self.dir = os.path.abspath('before')
        os.mkdir(self.dir)
        rnd = random.Random(seed)
        par, chi = KINDS[kind]
        size = 1 << 20
        base, leaf, raw = (os.path.join(self.dir, n) for n in ('base.vhd', 'leaf.avhd', 'raw'))
        if kind == 'raw':
            with open(base, 'wb') as f:
                f.write(rnd.randbytes(size))
            shutil.copy(base, raw)
        elif kind == 'middle':
            root = os.path.join(self.dir, 'root.vhd')
            vhdmodel.create(root, size, block=65536, rnd=rnd)
            vhdmodel.fill(root, rnd, 30, 4096, raw)
            vhdmodel.create(base, size, 'differencing', parent=root, rnd=rnd, **par)
            vhdmodel.fill(base, rnd, 12, 4096, raw)
        else:
            vhdmodel.create(base, size, rnd=rnd, **par)
            vhdmodel.fill(base, rnd, 12, 4096, raw, align=par.get('align', 4096))
        self.old = open(raw, 'rb').read()
        self.layers = []
        below = base
        if kind == 'deep':
            for n, block in enumerate((65536, 131072)):
                mid = os.path.join(self.dir, 'mid%d.avhd' % n)
                vhdmodel.create(mid, size, 'differencing', parent=below, rnd=rnd, block=block)
                vhdmodel.fill(mid, rnd, 8, 4096, raw, zeros=2)
                self.layers.append('mid%d.avhd' % n)
                below = mid
        if kind.startswith('grown'):
            size = 5 << 18
            os.truncate(raw, size)
        vhdmodel.create(leaf, size, 'differencing', parent=below, raw_parent=kind == 'raw', rnd=rnd, **chi)
        vhdmodel.fill(leaf, rnd, 10, 4096, raw, zeros=4)
        vhdmodel.fill(leaf, rnd, 8, 512, raw, zeros=4)
        vhdmodel.fill(leaf, rnd, 1, 65536, raw, zeros=0)
        self.new = open(raw, 'rb').read()
        os.unlink(raw)
        self.sums = {}
        for name, data in ('old', self.old), ('new', self.new):
            with open(name + '.raw', 'wb') as f:
                f.write(data)
            self.sums[name] = tool('vhd-sum', name + '.raw').stdout.split()[0]

    def fresh(self):
        shutil.rmtree('work', ignore_errors=True)
        shutil.copytree(self.dir, 'work')

    def options(self):
        return ['--delete'] * self.delete + ['--to=work/base.vhd'] * (self.kind == 'deep')

    def whole(self):
        return all(os.path.exists('work/' + n) for n in self.layers)

    def check(self, when):
        """The invariants, in work/; the merge is finished at the end."""
        def fail(text):
            raise SystemExit('%s, %s: %s' % (self.kind, when, text))
        there = os.path.exists('work/leaf.avhd')
        if there and (self.whole() or not self.delete):
            # Our tool first: what was cut short while a parent grew, every open puts back.
            p = tool('vhd-sum', 'work/leaf.avhd')
            if p.returncode:
                fail('the child does not open: %s' % p.stderr)
            if p.stdout.split()[0] != self.sums['new']:
                fail('the child has another sum')
            try:
                seen = vhdmodel.bytes_of('work/leaf.avhd')
            except vhdmodel.Broken as e:
                fail('the model cannot read the child: %s' % e)
            if seen != self.new:
                bad = next(i for i in range(0, len(seen), 512) if seen[i:i + 512] != self.new[i:i + 512])
                fail('the child reads differently from offset %d on' % bad)
        elif not self.delete:
            fail('the child is gone')
        p = tool('vhd-sum', 'work/base.vhd')
        got = p.stdout.split()[0] if p.returncode == 0 else None
        marked = p.returncode != 0
        if p.returncode == 0 and got not in self.sums.values():
            fail('the parent alone opens, and is neither old nor new')
        if not (there and self.whole()) and got != self.sums['new']:
            fail('the child is gone, and the parent is not what it was: %s' % p.stderr)
        # Without the child there is nothing to finish but what a marker tells of.
        if there or any(n.endswith('.merging') for n in os.listdir('work')):
            p = tool('vhd-merge', *self.options(), 'work/leaf.avhd')
            if p.returncode:
                fail('the same command does not finish it: %d %s' % (p.returncode, p.stderr))
        self.finished(fail)
        return marked

    def finished(self, fail):
        if vhdmodel.bytes_of('work/base.vhd', raw=self.kind == 'raw') != self.new:
            fail('after the second run the parent is wrong')
        p = tool('vhd-sum', 'work/base.vhd')
        if p.stdout.split()[:1] != [self.sums['new']]:
            fail('after the second run the parent has another sum, %s' % p.stderr)
        if self.kind != 'raw':
            bad = vhdmodel.check('work/base.vhd')
            if bad:
                fail('the parent is not sound: %s' % bad)
        # What kill -9 leaves of a file without a name yet cannot be helped.
        left = sorted(n for n in os.listdir('work') if not (n[0] == '.' and n.endswith('.tmp')))
        known = ['base.vhd', 'leaf.avhd', 'root.vhd']
        if not self.delete:
            known += self.layers + [n + '.merging' for n in self.layers] + ['base.vhd.absorbed']
        if [n for n in left if n not in known]:
            fail('left behind: %s' % left)
        if self.delete == ('leaf.avhd' in left):
            fail('the child is %s' % ('still there' if self.delete else 'gone'))
        if not self.delete and 'base.vhd.absorbed' not in left:
            fail('nothing says that the child was merged')
        if self.kind == 'middle':
            same = open('work/root.vhd', 'rb').read() == open('before/root.vhd', 'rb').read()
            if not same:
                fail('the parent of the parent was written')


def tool(*cmd):
    return subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600)


def strace(args, cmd, out='trace'):
    env = dict(os.environ, ASAN_OPTIONS='detect_leaks=0')
    return subprocess.run(['strace', '-f', '-qq', '-o', out] + args + cmd, env=env, timeout=600,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def traced(cmd):
    """[(call, n-th of its name)] of what the command does to files when nothing interrupts it."""
    p = strace(['-e', 'trace=' + ','.join(CALLS)], cmd)
    if p.returncode:
        raise SystemExit('%s fails: %s' % (' '.join(cmd), p.stderr))
    count, out = {}, []
    for line in open('trace'):
        m = re.match(r'\d+ +(\w+)\(', line)
        if m:
            count[m[1]] = count.get(m[1], 0) + 1
            out.append((m[1], count[m[1]]))
    if len(out) < 8:
        raise SystemExit('only %d calls that write' % len(out))
    return out


def calls(scene):
    scene.fresh()
    return traced(['vhd-merge'] + scene.options() + ['work/leaf.avhd'])


def sample(items, most):
    """The ends and an even choice of the rest."""
    if len(items) <= most:
        return items
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def kill(scene, most):
    marked = 0
    for call, n in sample(calls(scene), most):
        scene.fresh()
        p = strace(['-e', 'trace=' + call, '-e', 'inject=%s:signal=KILL:when=%d' % (call, n)],
                   ['vhd-merge'] + scene.options() + ['work/leaf.avhd'])
        if p.returncode not in (137, -9):
            raise SystemExit('not killed at %s %d: %s' % (call, n, p.stderr))
        marked += scene.check('killed at %s %d' % (call, n))
    if not marked and most > 5:
        raise SystemExit('at no moment was the parent marked')


def error(scene, most):
    candidates = [c for c in calls(scene) if c[0] in ('pwrite64', 'pwritev', 'fallocate', 'ftruncate',
                                                'copy_file_range', 'fsync', 'fdatasync')]
    for call, n in sample(candidates, most):
        for name, want in (('ENOSPC', 73), ('EIO', 74)):
            if 'sync' in call and name == 'ENOSPC':
                continue
            scene.fresh()
            p = strace(['-e', 'trace=' + call, '-e', 'inject=%s:error=%s:when=%d+' % (call, name, n)],
                       ['vhd-merge'] + scene.options() + ['work/leaf.avhd'])
            when = '%s at %s %d' % (name, call, n)
            # A call that something else can stand in for may fail and the merge succeed.
            if p.returncode == 0 and call in ('copy_file_range', 'fallocate'):
                scene.finished(lambda t: sys.exit('%s: %s' % (when, t)))
                continue
            if p.returncode != want:
                raise SystemExit('%s, %s: status %d, wanted %d: %s' % (scene.kind, when, p.returncode,
                                                                      want, p.stderr))
            scene.check(when)


# --- power -------------------------------------------------------------------------------------

def unhex(text):
    return bytes.fromhex(text.replace('\\x', ''))


def parse(trace, ops):
    """Appends ('write', path, off, data), ('size', path, n), ('sync', path), ('rename', a, b) …"""
    here = os.path.realpath('work')

    def path(p):
        p = unhex(p).decode() if '\\x' in p else p
        p = os.path.normpath(os.path.join(os.getcwd(), p))
        return os.path.relpath(p, here)
    for line in open(trace):
        m = re.match(r'\d+ +(\w+)\((.*)\) += (-?\d+)', line)
        if not m or m[3].startswith('-'):
            if re.search(r'\) += \?|killed by|unfinished|\+\+\+', line):
                continue
            if m:
                continue
            raise SystemExit('cannot understand %s' % line[:200])
        call, args, ret = m[1], m[2], int(m[3])
        f = re.match(r'\d+<([^>]*)>(?:, )?(.*)', args)
        if call == 'pwrite64':
            d, n, off = re.match(r'"([^"]*)", (\d+), (\d+)', f[2]).groups()
            d = unhex(d)
            if len(d) != int(n):
                raise SystemExit('the trace is cut')
            ops.append(('write', path(f[1]), int(off), d[:ret]))
        elif call == 'ftruncate':
            ops.append(('size', path(f[1]), int(f[2])))
        elif call == 'fallocate':
            mode, off, n = [a.strip() for a in f[2].split(',')]
            if 'PUNCH' in mode or 'ZERO_RANGE' in mode:
                ops.append(('zero', path(f[1]), int(off), int(n), 'KEEP' not in mode))
            elif mode == '0':
                ops.append(('zero', path(f[1]), int(off), 0, int(off) + int(n)))
            else:
                raise SystemExit('fallocate %s' % mode)
        elif call in ('fsync', 'fdatasync'):
            ops.append(('sync', path(f[1])))
        elif call in ('rename', 'renameat', 'renameat2'):
            a, b = [unhex(x).decode() for x in re.findall(r'"([^"]*)"', args)]
            ops.append(('rename', path(a), path(b)))
        elif call in ('unlink', 'unlinkat'):
            ops.append(('unlink', path(unhex(re.findall(r'"([^"]*)"', args)[0]).decode())))
        elif call in ('pwritev', 'pwritev2', 'copy_file_range', 'linkat'):
            raise SystemExit('%s: teach me' % call)


def lose_power(scene, ops, cut, rnd):
    """What work/ holds if the power goes after the first cut operations."""
    files = {n: bytearray(open(os.path.join(scene.dir, n), 'rb').read()) for n in os.listdir(scene.dir)}
    durable = {}  # index of the last sync that covers a file's data, by its name at that time
    last_dir = -1
    alias = {}    # a file keeps its identity over a rename
    ident = []
    for i, op in enumerate(ops[:cut]):
        name = alias.get(op[1], op[1])
        ident.append(name)
        if op[0] == 'sync':
            durable[name] = i
            last_dir = i    # any commit of the journal carries all earlier changes of names
        if op[0] == 'rename':
            alias[op[2]] = name
    names = {n: n for n in files}
    kept_names = rnd.randrange(last_dir + 1, cut + 1)
    keep = rnd.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    for i, op in enumerate(ops[:cut]):
        name = ident[i]
        sure = i <= durable.get(name, -1)
        if op[0] in ('write', 'size', 'zero') and name not in files:
            files[name] = bytearray()
            names[name] = name
        if op[0] == 'write':
            off, d = op[2], op[3]
            for o in range(0, len(d), 512):
                if sure or rnd.random() < keep:
                    put(files[name], off + o, d[o:o + 512])
        elif op[0] == 'size' and (sure or rnd.random() < keep):
            del files[name][op[2]:]
            files[name].extend(bytes(op[2] - len(files[name])))
        elif op[0] == 'zero' and (sure or rnd.random() < keep):
            n = len(files[name]) - op[2] if op[4] is False else op[3]
            put(files[name], op[2], bytes(max(0, min(op[3], n))))
            if op[4] > 1:
                files[name].extend(bytes(max(0, op[4] - len(files[name]))))
        elif op[0] == 'rename' and i < kept_names:
            names[op[2]] = names.pop(op[1], name)
        elif op[0] == 'unlink' and i < kept_names:
            names.pop(op[1], None)
    shutil.rmtree('work', ignore_errors=True)
    os.mkdir('work')
    for n, f in names.items():
        if not (n.startswith('.') and n.endswith('.tmp')):
            with open(os.path.join('work', n), 'wb') as out:
                out.write(files[f])


def moment(ops, first, rnd):
    """One in three at the very end, one in three at a sync, else anywhere."""
    how = rnd.randrange(3)
    syncs = [i for i, op in enumerate(ops) if op[0] == 'sync' and i >= first]
    if how == 0:
        return rnd.randrange(max(first, len(ops) - 3), len(ops) + 1)
    if how == 1 and syncs:
        return min(len(ops), rnd.choice(syncs) + rnd.randrange(3))
    return rnd.randrange(first, len(ops) + 1)


def put(buf, off, data):
    if len(buf) < off + len(data):
        buf.extend(bytes(off + len(data) - len(buf)))
    buf[off:off + len(data)] = data


TRACE = ['-y', '-xx', '-s', '9000000', '-e', 'trace=' + ','.join(CALLS)]


def power(scene, most, seed):
    rnd, ops = random.Random(seed), []
    scene.fresh()
    strace(TRACE, ['vhd-merge'] + scene.options() + ['work/leaf.avhd'])
    parse('trace', ops)
    for i in range(most):
        cut = moment(ops, 0, rnd)
        lose_power(scene, ops, cut, rnd)
        scene.check('power lost after %d of %d calls (%s)' % (cut, len(ops), ops[cut - 1][:3]))


def twice(scene, most, seed):
    rnd = random.Random(seed)
    candidates = calls(scene)
    for call, n in [rnd.choice(candidates) for _ in range(max(2, most // 12))]:
        ops = []
        scene.fresh()
        strace(TRACE + ['-e', 'inject=%s:signal=KILL:when=%d' % (call, n)],
               ['vhd-merge'] + scene.options() + ['work/leaf.avhd'])
        parse('trace', ops)
        first = len(ops)
        if not os.path.exists('work/leaf.avhd'):
            continue
        strace(TRACE, ['vhd-merge'] + scene.options() + ['work/leaf.avhd'])
        parse('trace', ops)
        for i in range(12):
            cut = moment(ops, first, rnd)
            lose_power(scene, ops, cut, rnd)
            scene.check('killed at %s %d, then power lost after %d of %d calls' % (call, n, cut, len(ops)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('how', choices=['kill', 'error', 'power', 'twice'])
    p.add_argument('kind', choices=sorted(KINDS))
    p.add_argument('--most', type=int, default=1000, help='so many interruptions, evenly chosen')
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--delete', action='store_true')
    a = p.parse_args()
    scene = Scene(a.kind, a.seed)
    scene.delete = a.delete
    if a.how in ('kill', 'error'):
        {'kill': kill, 'error': error}[a.how](scene, a.most)
    else:
        {'power': power, 'twice': twice}[a.how](scene, a.most, a.seed)


if __name__ == '__main__':
    main()
