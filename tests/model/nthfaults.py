#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Lets a call of a tool fail, each one in turn, and looks what the tool makes of it.

  nthfaults.py LIBRARY KIND TASK… [--most=N] [--seed=N]

LIBRARY is nth.so, KIND one of its kinds; TASK is a name in TASKS below. After each failure: the tool was
not killed, and says what is wrong on standard error unless it did its work nevertheless;
success means that the result is whole; a failure leaves every disk reading as before or as after; and the
same command without a failure does the work. No temporary file is left. Signals, short transfers, and what a
file system cannot do are no failures: nobody must see them.
"""
import argparse
import errno
import os
import random
import shutil
import subprocess
import sys

import vhdmodel

SIZE = 1 << 20
ERRNOS = {'memory': [errno.ENOMEM], 'eintr': [0], 'short': [0], 'plain': [0], 'file': [errno.EIO, errno.EACCES], 'write': [errno.EIO, errno.ENOSPC]}


def run(cmd, env=None, **kw):
    e = dict(os.environ, **env) if env else None
    return subprocess.run(cmd, env=e, stdin=kw.get('stdin', subprocess.DEVNULL), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=600)


def content(path):
    """As the guest sees it, by the model, or why not."""
    try:
        return vhdmodel.bytes_of(path)
    except (vhdmodel.Broken, OSError) as e:
        return repr(e)


def make_scene(d, rnd):
    p = lambda n: os.path.join(d, n)
    raw = p('raw.img')
    vhdmodel.create(p('base.vhd'), SIZE, block=65536, rnd=rnd)
    vhdmodel.fill(p('base.vhd'), rnd, 8, 4096, raw)
    vhdmodel.create(p('mid.avhd'), SIZE, 'differencing', parent=p('base.vhd'), block=65536, rnd=rnd,
                    locators='MacX,W2ku,W2ru', creator='tap')
    vhdmodel.fill(p('mid.avhd'), rnd, 6, 4096, raw)
    vhdmodel.create(p('leaf.avhd'), SIZE, 'differencing', parent=p('mid.avhd'), block=262144, rnd=rnd)
    vhdmodel.fill(p('leaf.avhd'), rnd, 6, 512, raw)
    vhdmodel.fill(p('leaf.avhd'), rnd, 1, 131072, raw, zeros=0)
    # A disk by itself, one that is damaged, one whose parent has moved.
    vhdmodel.create(p('bad.vhd'), SIZE, block=65536, rnd=rnd)
    vhdmodel.fill(p('bad.vhd'), rnd, 4, 4096, p('other.img'))
    os.unlink(p('other.img'))
    vhdmodel.create(p('good.vhd'), SIZE, block=65536, rnd=rnd)
    with open(p('bad.vhd'), 'r+b') as f:
        f.write(bytes(512))
    vhdmodel.create(p('lost.avhd'), SIZE, 'differencing', parent=p('good.vhd'), block=65536, rnd=rnd)
    os.makedirs(p('elsewhere'))
    os.rename(p('good.vhd'), p('elsewhere/moved.vhd'))
    shutil.copy(p('bad.vhd'), p('mended.vhd'))
    run(['vhd-check', '--repair', p('mended.vhd')])
    # A copy that an increment is applied to: it has no other children.
    os.makedirs(p('there'))
    shutil.copy(p('base.vhd'), p('there/disk.vhd'))
    for name, args in (('stream', ['leaf.avhd']), ('upper', ['--from=' + p('mid.avhd'), 'leaf.avhd']),
                       ('lower', ['--from=' + p('base.vhd'), 'mid.avhd'])):
        with open(p(name), 'wb') as f:
            f.write(run(['vhd-send'] + args[:-1] + [p(args[-1])]).stdout)


# Command; whether its output is always the same; disks that must read as before or after, whatever happens; the new file, if it makes
# one; the disk that it changes as no other tool may see it, and what goes on with that.
TASKS = {
    'info': dict(cmd=['vhd-info', '--json', '--chain', 'leaf.avhd']),
    'map': dict(cmd=['vhd-info', '--map', 'leaf.avhd']),
    'sum': dict(same=True, cmd=['vhd-sum', 'leaf.avhd', 'raw.img']),
    'check': dict(cmd=['vhd-check', '--chain', 'leaf.avhd']),
    'check-json': dict(cmd=['vhd-check', '--json', 'bad.vhd'], ok=65),
    'repair': dict(cmd=['vhd-check', '--repair', 'bad.vhd'], disks=['bad.vhd']),
    'repair-link': dict(cmd=['vhd-check', '--repair', '--parent-dir=elsewhere', 'lost.avhd'],
                        disks=['elsewhere/moved.vhd']),
    'undo': dict(used_up='mended.vhd.undo', cmd=['vhd-check', '--undo', '--force', 'mended.vhd'], disks=['mended.vhd']),
    'create': dict(cmd=['vhd-create', '--size=3M', 'new.vhd'], new='new.vhd'),
    'snap': dict(cmd=['vhd-snap', '--output=new.avhd', 'leaf.avhd'], new='new.avhd', disks=['leaf.avhd']),
    'convert': dict(cmd=['vhd-convert', '--type=dynamic', 'leaf.avhd', 'new.vhd'], new='new.vhd'),
    'import': dict(cmd=['vhd-convert', '--from=raw', '--type=fixed', 'raw.img', 'new.vhd'], new='new.vhd'),
    'merge': dict(cmd=['vhd-merge', 'leaf.avhd'], disks=['leaf.avhd']),
    'merge-to': dict(cmd=['vhd-merge', '--delete', '--to=base.vhd', 'leaf.avhd'], gone='leaf.avhd', into='base.vhd'),
    'flatten': dict(cmd=['vhd-merge', '--output=new.vhd', 'leaf.avhd'], new='new.vhd', disks=['leaf.avhd']),
    'resize': dict(cmd=['vhd-resize', '--size=40M', 'elsewhere/moved.vhd'], disks=['elsewhere/moved.vhd']),
    'reparent': dict(cmd=['vhd-reparent', '--parent=elsewhere/moved.vhd', 'lost.avhd'], disks=['elsewhere/moved.vhd']),
    'recv': dict(cmd=['vhd-recv', 'new.vhd'], stdin='stream', new='new.vhd'),
    'recv-child': dict(cmd=['vhd-recv', '--verify', '--parent=mid.avhd', 'new.avhd'], stdin='upper', new='new.avhd',
                       disks=['mid.avhd']),
    'recv-onto': dict(cmd=['vhd-recv', '--verify', '--onto', 'there/disk.vhd'], stdin='lower', updates='there/disk.vhd',
                      again='vhd-send --resume="$(vhd-recv --token there/disk.vhd)" --from=base.vhd mid.avhd |'
                            'vhd-recv --verify --onto there/disk.vhd'),
    'send': dict(cmd=['vhd-send', '--dry-run', '--json', 'leaf.avhd']),
}


class Trial:
    def __init__(self, args, task):
        self.args, self.task, self.t = args, task, TASKS[task]
        self.read = self.t.get('disks', [])

    def fresh(self):
        shutil.rmtree('work', ignore_errors=True)
        shutil.copytree('before', 'work')

    def again(self):
        if 'again' not in self.t:
            return self.command(None)
        os.chdir('work')
        try:
            return run(['sh', '-c', self.t['again']])
        finally:
            os.chdir('..')

    def command(self, nth=0, err=0):
        env = None
        if nth is not None:
            env = dict(LD_PRELOAD=self.args.library, NTH=str(nth), NTH_KIND=self.args.kind, NTH_ERRNO=str(err),
                       NTH_COUNT=os.path.abspath('count'))
        os.chdir('work')
        try:
            stdin = open(self.t['stdin'], 'rb') if 'stdin' in self.t else subprocess.DEVNULL
            return run(self.t['cmd'], env, stdin=stdin)
        finally:
            os.chdir('..')

    def fail(self, nth, p, text):
        raise SystemExit('%s, %s call %d: %s (status %d)\n%s' % (
            self.task, self.args.kind, nth, text, p.returncode, p.stderr.decode(errors='replace')))

    def all_content(self):
        return {n: content('work/' + n) for n in self.read}

    def left(self):
        return [n for n in os.listdir('work')
                if n.startswith('.') or n.endswith(('.merging', '.partial')) or
                (n.endswith('.rollback') and not self.ended('work/' + n))]

    @staticmethod
    def ended(path):
        """A sidecar that says itself that its change has ended (lib/undo.c) may lie until the next one."""
        with open(path, 'rb') as f:
            data = f.read()
        return data.startswith(b'qsm-void') or data[-32:-24] == b'qsm-done'

    def new_content(self):
        return content('work/' + self.t['new']) if 'new' in self.t else None

    def after_success(self, nth, p):
        if 'new' in self.t and self.new_content() != self.good_new:
            self.fail(nth, p, 'success, and %s is not whole' % self.t['new'])
        if 'into' in self.t and (os.path.exists('work/' + self.t['gone']) or
                                 content('work/' + self.t['into']) != self.leaf):
            self.fail(nth, p, 'success, and the merge is not')
        if 'updates' in self.t:
            self.updated(nth, p, [self.mid])
        if 'same' in self.t and p.stdout != self.good.stdout:
            self.fail(nth, p, 'success, and another result')

    def updated(self, nth, p, may_be):
        """The disk is closed (to the model it is not), or one of these."""
        name = 'work/' + self.t['updates']
        closed = run(['vhd-sum', name]).returncode == 75
        if self.old in may_be and closed:
            return
        if closed or content(name) not in may_be:
            self.fail(nth, p, 'the disk is %s' % ('closed' if closed else 'another one'))
        # A log that could not be removed says that all is done.
        left = set(os.listdir('work/there')) - {'disk.vhd', '.disk.vhd.partial-log.tmp'}
        if self.old not in may_be and left:
            self.fail(nth, p, 'left behind: %s' % left)

    def after_failure(self, nth, p):
        if not p.stderr.strip() and not (p.returncode == 65 and p.stdout):
            self.fail(nth, p, 'no message')
        if 'updates' in self.t:
            self.updated(nth, p, [self.old, self.mid])
        if 'into' in self.t and os.path.exists('work/' + self.t['gone']):
            if content('work/' + self.t['gone']) != self.leaf and os.path.exists('work/mid.avhd'):
                self.fail(nth, p, 'the leaf shows something else')
        if 'new' in self.t and os.path.exists('work/' + self.t['new']) and self.new_content() != self.good_new:
            self.fail(nth, p, 'a new file that is not whole')

    def one(self, nth, err):
        self.fresh()
        p = self.command(nth, err)
        want = self.t.get('ok', 0)
        if p.returncode < 0 or p.returncode in (70, 134, 139) or p.returncode not in (0, want) and p.returncode < 64:
            self.fail(nth, p, 'died')
        if self.args.kind in ('eintr', 'short', 'plain') and p.returncode != want:
            self.fail(nth, p, 'seen')
        if p.returncode == want and p.returncode != 65:
            self.after_success(nth, p)
        elif p.returncode != want:
            self.after_failure(nth, p)
        # What a change that was cut short left behind is put back by the next open, which is ours.
        for n in self.read:
            run(['vhd-info', 'work/' + n])
        now = self.all_content()
        for n in self.read:
            if now[n] not in (self.before[n], self.after[n]):
                self.fail(nth, p, '%s is neither as before nor as after' % n)
        if self.t['cmd'][0] == 'vhd-info' or p.returncode == want:
            return
        if 'new' in self.t and os.path.exists('work/' + self.t['new']):
            return  # failed behind the rename: it is there, and whole
        if 'into' in self.t and not os.path.exists('work/' + self.t['gone']) and not self.left() and \
                content('work/' + self.t['into']) == self.leaf:
            return  # failed behind the last removal
        if 'used_up' in self.t and not os.path.exists('work/' + self.t['used_up']) and not self.left():
            return
        again = self.again()
        if again.returncode != want:
            self.fail(nth, again, 'the same command does not do it afterwards')
        if 'updates' in self.t:
            self.updated(nth, again, [self.mid])
        if self.left():
            self.fail(nth, p, 'left behind: %s' % self.left())

    def run(self):
        want = self.t.get('ok', 0)
        self.fresh()
        self.before, self.leaf = self.all_content(), content('work/leaf.avhd')
        self.old, self.mid = content('work/base.vhd'), content('work/mid.avhd')
        self.good = self.command(0)
        if self.good.returncode != want:
            self.fail(0, self.good, 'does not work at all')
        self.after, self.good_new = self.all_content(), self.new_content()
        calls = int(open('count').read())
        picked = list(range(1, calls + 1)) if self.args.kind != 'plain' else [1]
        if len(picked) > self.args.most:
            picked = sorted(self.args.rnd.sample(picked, self.args.most))
        for i, nth in enumerate(picked):
            errs = ERRNOS[self.args.kind]
            self.one(nth, errs[i % len(errs)])
        print('%s: %d of %d %s calls' % (self.task, len(picked), calls, self.args.kind))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('library', type=os.path.abspath)
    p.add_argument('kind', choices=sorted(ERRNOS))
    p.add_argument('task', nargs='+', choices=sorted(TASKS))
    p.add_argument('--most', type=int, default=10000)
    p.add_argument('--seed', type=int, default=1)
    args = p.parse_args()
    args.rnd = random.Random(args.seed)
    os.mkdir('before')
    make_scene('before', random.Random(1))
    for t in args.task:
        Trial(args, t).run()


if __name__ == '__main__':
    sys.exit(main())
