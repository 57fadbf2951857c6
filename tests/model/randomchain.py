#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Random work on chains: our tools change the files, the model says what must come out.

  randomchain.py SEED STEPS

Every layer of a chain is written as a guest would; checkpoints, merges and conversions must not
change what the leaf reads as. Everything is checked after every step, by the model and by our tools.
"""
import os
import random
import subprocess
import sys

import vhdmodel

BLOCKS = [4096, 16384, 65536, 524288, 2 << 20]


def tool(*cmd, want=0):
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600)
    if p.returncode != want:
        raise SystemExit('%s: status %d: %s' % (' '.join(cmd), p.returncode, p.stderr))
    return p.stdout


class Disk:
    def __init__(self, rnd):
        self.rnd, self.count = rnd, 0
        self.size = rnd.choice([1 << 20, 3 << 20, (2 << 20) + 512, 4096 * 777, 512 * 4099])
        self.view = bytearray(self.size)
        self.layers = [self.first()]    # the leaf is the last

    def name(self, suffix):
        self.count += 1
        return 'disk %d%s' % (self.count, suffix)

    def first(self):
        name = self.name('.vhd')
        how = self.rnd.choice(['ours', 'ours', 'fixed', 'model', 'tap'])
        block = self.rnd.choice(BLOCKS)
        if how == 'ours':
            tool('vhd-create', '--size=%d' % self.size, '--block-size=%d' % block, name)
        elif how == 'fixed':
            tool('vhd-create', '--type=fixed', '--size=%d' % self.size, name)
        else:
            vhdmodel.create(name, self.size, block=block, rnd=self.rnd, align=self.rnd.choice([512, 4096]),
                            creator='tap' if how == 'tap' else self.rnd.choice(['win', 'vpc', 'vbox']))
        return name

    def write(self):
        e = vhdmodel.Editor(self.layers[-1], self.rnd.choice([512, 4096]))
        for _ in range(self.rnd.randrange(1, 12)):
            unit = self.rnd.choice([512, 512, 4096, 65536])
            if unit > self.size:
                continue
            o = self.rnd.randrange(self.size // 512 - unit // 512 + 1) * 512
            d = bytes(unit) if self.rnd.randrange(4) == 0 else self.rnd.randbytes(unit)
            e.write(o, d)
            self.view[o:o + unit] = d
        e.finish()

    def snap(self):
        if len(self.layers) >= 7:
            return
        if self.rnd.randrange(2):
            child = self.name('.avhd')
            tool('vhd-snap', '--output=' + child, self.layers[-1])
        else:   # the checkpoint of another program, with a block size of its own
            child = self.name('.avhd')
            vhdmodel.create(child, self.size, 'differencing', parent=self.layers[-1], rnd=self.rnd,
                            block=self.rnd.choice(BLOCKS), align=self.rnd.choice([512, 4096]),
                            locators=self.rnd.choice(['W2ku,W2ru', 'MacX,W2ku,W2ru', 'W2ru']),
                            creator=self.rnd.choice(['win', 'tap', 'vpc']))
        self.layers.append(child)

    def merge(self):
        if len(self.layers) < 2:
            return
        if self.rnd.randrange(2):
            tool('vhd-merge', '--delete', self.layers[-1])
        else:
            tool('vhd-merge', self.layers[-1])
            os.unlink(self.layers[-1])
        self.layers.pop()

    def convert(self):
        kind = self.rnd.choice(['dynamic', 'fixed', 'raw'])
        new = self.name('.vhd')
        tool('vhd-convert', '--type=' + kind, self.layers[-1], new)
        if kind == 'raw':
            raw, new = new, self.name('.vhd')
            tool('vhd-convert', '--from=raw', '--type=dynamic', raw, new)
        self.layers = [new]

    def check(self):
        leaf = self.layers[-1]
        if vhdmodel.bytes_of(leaf) != self.view:
            raise SystemExit('the model reads something else from %s' % leaf)
        with open('view.raw', 'wb') as f:
            f.write(self.view)
        a, b = [l.split()[0] for l in tool('vhd-sum', leaf, 'view.raw').splitlines()]
        if a != b:
            raise SystemExit('vhd-sum sees something else in %s' % leaf)
        for l in self.layers:
            bad = vhdmodel.check(l)
            if bad:
                raise SystemExit('%s: %s' % (l, bad))
        if self.rnd.randrange(4) == 0:
            tool('vhd-convert', '--force', '--type=raw', leaf, 'out.raw')
            if open('out.raw', 'rb').read() != self.view:
                raise SystemExit('vhd-convert sees something else in %s' % leaf)


def main():
    seed, steps = int(sys.argv[1]), int(sys.argv[2])
    rnd = random.Random(seed)
    disk, log = Disk(rnd), []
    try:
        for _ in range(steps):
            step = rnd.choices([Disk.write, Disk.snap, Disk.merge, Disk.convert], [5, 5, 3, 1])[0]
            log.append('%s(%s)' % (step.__name__, disk.layers[-1]))
            step(disk)
            disk.check()
    except BaseException:
        print('seed %d, size %d: %s' % (seed, disk.size, ' '.join(log)), file=sys.stderr)
        raise


if __name__ == '__main__':
    main()
