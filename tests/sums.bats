# SPDX-License-Identifier: BSD-2-Clause
# Content sums kept beside a disk, FILE.sums: right wherever they are used, and void after any write. The disks are
# large enough for that, and mostly holes.
load helper
load disks
load streams

setup() {
	workdir
}

sum() {
	vhd-sum "$@" | cut -d' ' -f1
}

# read_for DISK…: bytes that must be read to know the sum of the last one.
read_for() {
	vhd-sum --known --json "$@" | jq '.sums[-1].read'
}

# right DISK: what is known of it is what it reads, to our tool and to the model.
right() {
	local known full
	known=$(vhd-sum --quiet --known "$1" | cut -d' ' -f1)
	model cat "$1" >"$1.all"
	full=$(model contentsum "$1.all")
	rm "$1.all"
	[ "$known" = "$full" ] || fail "$1: sum $known, but it reads $full"
}

# void DISK: nothing is believed, and the sum is right.
void() {
	[ "$(read_for "$1")" -gt "${2:-300000}" ] || fail "$1: its sums were believed"
	right "$1"
}

# known DISK: all is known, and right.
known() {
	local n
	n=$(read_for "$1")
	[ "$n" -eq 0 ] || fail "$1: $n bytes were read"
	right "$1"
}

# A disk of 72 MiB all of whose blocks are in the file, and little data in them. Options of the model.
big() {
	model make "$1" --size=72M --block=2M --fill=200:4K "${@:2}"
	[ "$(stat -c %s "$1")" -ge $((64 << 20)) ] || fail "$1 is too small"
}

# base_sum STREAM: as it tells the content sum of its base, or nothing.
base_sum() {
	dump --json "$1" | jq -r '.base_sum // empty'
}

# killed COMMAND…: within 60 ms, or not at all.
killed() {
	local p
	"$@" >/dev/null 3>&- &
	p=$!
	sleep "0.0$((RANDOM % 6))"
	kill -9 "$p" 2>/dev/null || :
	wait "$p" 2>/dev/null || :
}

# writes FILE: by the model, which is another program and takes no lock.
writes() {
	model write "$@"
}

# The leak checker of a sanitizer cannot be traced.
traced() {
	need strace
	ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 strace "$@"
}

tool_of() {
	traced -f -y -e trace=pread64,read,preadv -o "$BATS_TEST_TMPDIR/trace" "$@"
}

# bytes_read FILE: by the last tool_of.
bytes_read() {
	grep -F "<$(realpath "$1")>" "$BATS_TEST_TMPDIR/trace" | awk '{ n += $NF } END { print n + 0 }'
}

@test "summing a disk keeps its sums, and the next one reads nothing" {
	big disk.vhd
	[ "$(read_for disk.vhd)" -gt 300000 ]
	known disk.vhd
}

@test "without --known all is read" {
	big disk.vhd
	vhd-sum disk.vhd
	tool_of vhd-sum disk.vhd
	[ "$(bytes_read disk.vhd)" -gt 300000 ]
	tool_of vhd-sum -q --known disk.vhd
	[ "$(bytes_read disk.vhd)" -lt 150000 ]
}

@test "--known says how much was read" {
	big disk.vhd
	run --separate-stderr vhd-sum --known disk.vhd
	assert_status 0
	[[ $stderr =~ disk.vhd:\ .*MiB\ of\ it\ were\ read ]]
	run --separate-stderr vhd-sum --known disk.vhd
	[[ $stderr =~ disk.vhd:\ 0\ B\ of\ it\ were\ read ]]
	run --separate-stderr vhd-sum --quiet --known disk.vhd
	[ -z "$stderr" ]
}

@test "--blocks tells what is known, and is the same" {
	big disk.vhd
	vhd-sum --blocks disk.vhd >first
	tool_of vhd-sum --blocks --known --quiet disk.vhd >second
	cmp first second
	[ "$(bytes_read disk.vhd)" -lt 150000 ]
	run vhd-sum --blocks --known --seed=7 disk.vhd
	assert_status 64
}

@test "a small disk has none" {
	model make disk.vhd --size=8M --fill=20:4K
	unchanged disk.vhd -- vhd-sum disk.vhd
}

@test "raw and fixed disks, and an odd size" {
	truncate -s 67109376 disk.raw
	printf x | dd of=disk.raw bs=1 seek=67109375 conv=notrunc status=none
	model make disk.vhd --kind=fixed --size=66M --fill=9:512
	vhd-sum -q --known disk.raw disk.vhd
	[ "$(read_for disk.raw)" -eq 0 ]
	[ "$(sum -q --known disk.raw)" = "$(model contentsum disk.raw)" ]
	known disk.vhd
}

@test "sums are as secret as the disk, and its owner's" {
	needs_root
	big disk.vhd
	for m in 600 640 644 660 666; do
		chmod $m disk.vhd
		chown 12:34 disk.vhd
		vhd-sum disk.vhd
		[ "$(stat -c '%u:%g' disk.vhd.sums)" = 12:34 ]
		[ "$(stat -c %a disk.vhd.sums)" = "$(printf '%o' $((0$m & 0644)))" ]
	done
}

@test "sending a whole disk makes them, and so does receiving" {
	big disk.vhd
	for t in dynamic fixed raw; do
		rm -f disk.vhd.sums copy*
		vhd-send disk.vhd | vhd-recv --type=$t copy
		[ "$(read_for disk.vhd)" -eq 0 ]
		[ "$(read_for copy)" -eq 0 ]
		[ "$(sum -q --known copy)" = "$(sum disk.vhd)" ]
	done
	known disk.vhd
}

@test "sending against the sums of a stale copy makes them" {
	big disk.vhd
	cp disk.vhd stale.vhd
	vhd-sum --blocks --seed=5 stale.vhd >stale
	[ ! -e stale.vhd.sums ]
	writes disk.vhd --fill=2:4K --seed=9
	vhd-send --against=stale disk.vhd >s
	known disk.vhd
	vhd-recv --onto stale.vhd <s
	right stale.vhd
	[ "$(sum stale.vhd)" = "$(sum disk.vhd)" ]
}

@test "a transfer that was cut and gone on with has all of them" {
	big disk.vhd --fill=120:64K --seed=3
	vhd-send --checkpoint=1M disk.vhd >s
	head -c 4000000 s | vhd-recv copy.vhd && fail "a cut stream was taken"
	token=$(vhd-recv --token copy.vhd)
	[ -n "$token" ]
	vhd-send --resume="$token" disk.vhd | vhd-recv copy.vhd
	known copy.vhd
	# and the sender does not replace what it knows by what it saw of the rest
	known disk.vhd
}

# half FILE DISK [OPTION]…: a transfer of DISK to FILE that ends when about half of it came.
half() {
	vhd-send --checkpoint=1M "${@:3}" "$2" 2>/dev/null | head -c 4000000 | vhd-recv "$1" &&
		fail "a cut stream was taken"
	token=$(vhd-recv --token "$1")
	[ -n "$token" ]
}

@test "a sender that was cut keeps what it summed, and the one that goes on has all" {
	local n all
	big disk.vhd --fill=120:64K --seed=3
	all=$(cp disk.vhd all.vhd && read_for all.vhd)
	half copy.vhd disk.vhd
	cp --preserve=all disk.vhd.sums part.sums
	n=$(read_for disk.vhd)
	[ "$n" -lt $((all - 1000000)) ] || fail "$n of $all bytes were read"
	[ "$n" -gt 1000000 ]
	right disk.vhd
	cp --preserve=all part.sums disk.vhd.sums
	vhd-send --resume="$token" --receipt=sent disk.vhd | vhd-recv copy.vhd >got
	known disk.vhd
	known copy.vhd
	# so the end of the stream tells the sum of all
	[ "$(jq -r .content_sum sent)" = "$(sum disk.vhd)" ]
	[ "$(jq -r .content_sum sent)" = "$(jq -r .content_sum got)" ]
}

@test "where the first part is not known, the rest of a transfer is" {
	local n all
	big disk.vhd --fill=120:64K --seed=3
	all=$(cp disk.vhd all.vhd && read_for all.vhd)
	half copy.vhd disk.vhd
	rm disk.vhd.sums
	vhd-send --resume="$token" --receipt=sent disk.vhd | vhd-recv copy.vhd
	[ "$(jq .content_sum sent)" = null ]
	cp --preserve=all disk.vhd.sums part.sums
	n=$(read_for disk.vhd)
	[ "$n" -lt $((all - 1000000)) ] || fail "$n of $all bytes were read"
	[ "$n" -gt 1000000 ]
	right disk.vhd
}

@test "a sender that was cut forgets nothing that was known" {
	big disk.vhd --fill=120:64K --seed=3
	vhd-sum disk.vhd
	half copy.vhd disk.vhd
	known disk.vhd
	# not even when it goes on in front of what was known
	vhd-send --resume="$token" disk.vhd | head -c 1000000 >/dev/null
	known disk.vhd
}

@test "a sender that goes on after the disk was written to knows the disk as it is" {
	truncate -s 72M disk.raw
	head -c 8M /dev/urandom | dd of=disk.raw conv=notrunc bs=1M status=none
	half copy disk.raw --raw
	# behind what was sent, so that this is still right
	printf new | dd of=disk.raw conv=notrunc bs=1M seek=60 status=none
	vhd-send --raw --resume="$token" disk.raw | vhd-recv copy
	[ "$(read_for disk.raw)" -eq 0 ]
	[ "$(sum -q --known disk.raw)" = "$(model contentsum disk.raw)" ]
	cmp disk.raw copy
}

@test "the rest of a stored stream: only what is not known of the disk is read" {
	local n all
	big disk.vhd --fill=120:64K --seed=3
	vhd-send --checkpoint=1M disk.vhd >whole
	head -c 4000000 whole >cut
	token=$(vhd-stream trim cut)
	all=$(stat -c %s cut)
	tool_of vhd-send --resume="$token" disk.vhd >rest
	n=$(bytes_read disk.vhd)
	[ "$n" -lt $(($(stat -c %s whole) - all + 1000000)) ] || fail "$n bytes were read"
	cat cut rest | vhd-recv copy.vhd
	[ "$(sum copy.vhd)" = "$(sum disk.vhd)" ]
	rm disk.vhd.sums
	vhd-send --resume="$token" disk.vhd | cmp - rest
	known disk.vhd
}

@test "summing that came to no end goes on where it was" {
	local n all
	big disk.vhd --fill=120:64K --seed=3
	all=$(cp disk.vhd all.vhd && read_for all.vhd)
	faulty FAULT_READ=60 vhd-sum disk.vhd && fail "a read that failed is no failure"
	n=$(read_for disk.vhd)
	[ "$n" -lt "$all" ] || fail "$n of $all bytes were read"
	right disk.vhd
}

@test "what a child did not touch is known from its parent" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	[ "$(read_for leaf.avhd)" -le $((6 << 20)) ]
	right leaf.avhd
}

@test "sums of several layers add up" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o a.avhd
	writes a.avhd --fill=3:4K --seed=2
	vhd-snap -q a.avhd -o b.avhd
	writes b.avhd --fill=3:512 --seed=3
	vhd-snap -q b.avhd -o c.avhd
	writes c.avhd --fill=2:2M --seed=4
	right c.avhd
	rm -f c.avhd.sums
	vhd-sum -q --known a.avhd
	[ "$(read_for c.avhd)" -le $((20 << 20)) ]
	right c.avhd
	right b.avhd
}

@test "a received increment: chunks that came whole are known, others are not" {
	big base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4M --align=1M --seed=2
	writes leaf.avhd --fill=2:4K --seed=3
	mkdir far
	vhd-send base.vhd | vhd-recv far/base.vhd
	vhd-send --from=base.vhd leaf.avhd | vhd-recv --parent=far/base.vhd far/leaf.avhd
	[ "$(read_for far/leaf.avhd)" -le $((4 << 20)) ]
	right far/leaf.avhd
	# the end of a chunk is not all of it, nor are its start and its end
	vhd-snap -q leaf.avhd -o next.avhd
	writes next.avhd --fill=110:256K --align=256K --seed=5
	vhd-send --from=leaf.avhd next.avhd | vhd-recv --parent=far/leaf.avhd far/next.avhd
	right far/next.avhd
}

@test "a merge carries on what is known, and reads nothing for it" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	tool_of vhd-merge --delete leaf.avhd
	[ "$(bytes_read base.vhd)" -lt 150000 ]
	[ "$(read_for base.vhd)" -le $((6 << 20)) ]
	right base.vhd
	nothing_left base.vhd base.vhd.sums
}

@test "a merge takes what the child knows better" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	vhd-sum -q --known leaf.avhd
	vhd-merge --delete leaf.avhd
	known base.vhd
	nothing_left base.vhd base.vhd.sums
}

@test "a merge of several layers into the base, into a fixed and a raw one, and of a grown child" {
	for kind in dynamic fixed raw; do
		rm -f ./*
		if [ $kind = raw ]; then
			truncate -s 70M base
			vhd-snap -q --help >/dev/null
			model make a.avhd --parent=base --raw-parent --fill=3:4K --seed=2
		else
			model make base --kind=$kind --size=70M --fill=120:512
			model make a.avhd --parent=base --fill=3:4K --seed=2
		fi
		vhd-sum -q base
		vhd-snap -q a.avhd -o b.avhd
		writes b.avhd --fill=3:4K --seed=3
		want=$(sum b.avhd)
		rm -f ./*avhd.sums
		vhd-merge --to=base --delete b.avhd
		[ "$(read_for base)" -le $((12 << 20)) ]
		[ "$(sum base)" = "$want" ]
		[ "$(sum -q --known base)" = "$want" ]
	done
	rm -f ./*
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	vhd-resize --size=80M leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=3
	right leaf.avhd
	vhd-merge --delete leaf.avhd
	right base.vhd
}

@test "--onto carries them on" {
	big base.vhd
	mkdir far
	vhd-send base.vhd | vhd-recv far/base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4M --align=1M --seed=2
	vhd-send --from=base.vhd leaf.avhd | vhd-recv --onto far/base.vhd
	known far/base.vhd
	[ "$(sum far/base.vhd)" = "$(sum leaf.avhd)" ]
	cd far
	nothing_left base.vhd base.vhd.sums
}

@test "rounds of increments stay right at both sides" {
	big base.vhd
	mkdir far
	vhd-send base.vhd | vhd-recv far/base.vhd
	for i in 1 2 3 4; do
		vhd-snap -q base.vhd -o "$i.avhd"
		writes "$i.avhd" --fill=3:4K --seed="$i"
		writes "$i.avhd" --fill=2:4M --zeros=3 --seed="$i$i"
		vhd-send --from=base.vhd "$i.avhd" >s
		[ "$(base_sum s)" = "$(sum base.vhd)" ]
		vhd-recv --parent=far/base.vhd far/new.avhd <s
		vhd-merge --delete far/new.avhd
		vhd-merge --delete "$i.avhd"
	done
	right far/base.vhd
	right base.vhd
	[ "$(sum far/base.vhd)" = "$(sum base.vhd)" ]
}

@test "void after one byte is written by dd" {
	big disk.vhd
	vhd-sum disk.vhd
	printf x | dd of=disk.vhd bs=1 seek=40000000 conv=notrunc status=none
	void disk.vhd
}

@test "void after a write with the old times put back" {
	big disk.vhd
	vhd-sum disk.vhd
	touch -r disk.vhd times
	printf x | dd of=disk.vhd bs=1 seek=40000000 conv=notrunc status=none
	touch -r times disk.vhd
	void disk.vhd
}

# coarse COMMAND…: where times have whole seconds.
coarse() {
	local so=$BATS_TEST_TMPDIR/coarse.so
	[ -f "$so" ] || "${CC:-cc}" -shared -fPIC -o "$so" "$top/tests/model/coarse.c" -ldl
	env LD_PRELOAD="$so" "$@"
}

@test "void after a write in the same tick of the clock" {
	[ -z "$sanitized" ] || skip "not with sanitizers"
	truncate -s 66M disk.raw
	coarse true
	for _ in 1 2 3 4 5 6; do
		wait_for early
		printf y | dd of=disk.raw bs=1 seek=40000000 conv=notrunc status=none
		coarse vhd-sum -q disk.raw
		printf x | dd of=disk.raw bs=1 seek=40000000 conv=notrunc status=none
		[ "$(coarse vhd-sum -q --known disk.raw | cut -d' ' -f1)" = "$(model contentsum disk.raw)" ] ||
			fail "an old sum"
	done
}

@test "void after a write in the same tick as a merge" {
	[ -z "$sanitized" ] || skip "not with sanitizers"
	big base.vhd
	sleep 1.1
	coarse vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	wait_for early
	coarse vhd-merge leaf.avhd
	writes base.vhd --fill=60:64K --seed=6
	model cat base.vhd >all
	[ "$(coarse vhd-sum -q --known base.vhd | cut -d' ' -f1)" = "$(model contentsum all)" ]
}

# In the first half of a second.
early() {
	case $(date +%N) in
	[0-4]*) ;;
	*) return 1 ;;
	esac
}

@test "the disk that was received is written to as soon as it has its name" {
	big disk.vhd
	vhd-send disk.vhd >s
	(
		wait_for test -e copy.vhd
		printf x | dd of=copy.vhd bs=1 seek=40000000 conv=notrunc status=none
	) 3>&- &
	traced -f -o trace -e trace=renameat2 -e inject=renameat2:delay_exit=400000 vhd-recv copy.vhd <s
	wait
	grep -q 'copy.vhd".*DELAYED' trace || skip "strace cannot hold a call"
	right copy.vhd
}

@test "void after a parent was written to" {
	big base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	vhd-sum leaf.avhd
	writes base.vhd --fill=1:512 --seed=7
	void leaf.avhd
}

@test "void after a write through the plugin, which removes them" {
	need nbdkit
	"$python" -c 'import nbd' 2>/dev/null || skip "needs python3-libnbd"
	big disk.vhd
	vhd-sum disk.vhd
	nbdkit -U - "$QSM_PLUGIN" file="$PWD/disk.vhd" \
		--run "$python"' -c "import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(bytes(512), 1 << 20)" "$uri"'
	[ ! -e disk.vhd.sums ]
	void disk.vhd
}

@test "a merge voids those of the parent as it was, and of its child" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	vhd-sum leaf.avhd
	cp base.vhd.sums old.base
	cp leaf.avhd.sums old.leaf
	vhd-merge leaf.avhd
	[ ! -e leaf.avhd.sums ]
	mv old.base base.vhd.sums
	mv old.leaf leaf.avhd.sums
	void base.vhd
	rm base.vhd.sums
	void leaf.avhd
}

@test "void under another content of the same name" {
	big a.vhd
	big b.vhd --seed=5
	vhd-sum a.vhd b.vhd
	mv b.vhd a.vhd
	void a.vhd
	mv b.vhd.sums a.vhd.sums
	void a.vhd
}

@test "a copy with its sums has none" {
	big disk.vhd
	vhd-sum disk.vhd
	mkdir copy
	cp -a disk.vhd disk.vhd.sums copy
	void copy/disk.vhd
}

@test "void after the system was started again" {
	needs_root
	need unshare
	big disk.vhd
	vhd-sum disk.vhd
	known disk.vhd
	echo 01234567-89ab-4def-8123-456789abcdef >boot
	unshare -m sh -c 'mount --bind boot /proc/sys/kernel/random/boot_id || exit 99
		vhd-sum --known --json disk.vhd' >out
	[ "$(jq '.sums[0].read' out)" -gt 300000 ]
	# those are of that boot, now
	void disk.vhd
}

@test "where no boot is told apart nothing is kept" {
	needs_root
	need unshare
	big disk.vhd
	: >boot
	unshare -m sh -c 'mount --bind boot /proc/sys/kernel/random/boot_id || exit 99
		vhd-sum disk.vhd'
	[ ! -e disk.vhd.sums ]
}

@test "damaged in any place, cut, or made longer: not believed" {
	big disk.vhd
	vhd-sum disk.vhd
	cp disk.vhd.sums good
	size=$(stat -c %s good)
	for at in 0 8 12 16 24 40 56 60 64 68 72 100 $((size / 2)) $((size - 1)); do
		"$python" - good disk.vhd.sums "$at" <<-'END'
			import sys
			b = bytearray(open(sys.argv[1], 'rb').read())
			b[int(sys.argv[3])] ^= 1
			open(sys.argv[2], 'wb').write(b)
		END
		tool_of vhd-sum -q --known disk.vhd >out
		[ "$(bytes_read disk.vhd)" -gt 300000 ] || fail "byte $at"
		rm disk.vhd.sums
	done
	for n in 1 8 63 64 65 100 $((size - 1)); do
		head -c "$n" good >disk.vhd.sums
		tool_of vhd-sum -q --known disk.vhd >out
		[ "$(bytes_read disk.vhd)" -gt 300000 ] || fail "cut at $n"
		rm -f disk.vhd.sums
	done
	cat good good >disk.vhd.sums
	void disk.vhd
}

# hostile PYTHON: changes the fields of disk.vhd.sums (h: head, r: runs) and seals it again.
hostile() {
	"$python" -c 'import xxhash' 2>/dev/null || skip "needs python3-xxhash"
	"$python" - good disk.vhd.sums "$1" <<-'END'
		import struct, sys, xxhash
		b = open(sys.argv[1], 'rb').read()[:-16]
		h = list(struct.unpack('<8sIIQ16s16sQ', b[:64]))
		r = [list(struct.unpack('<II16s', b[i:i + 24])) for i in range(64, len(b), 24)]
		exec(sys.argv[3])
		b = struct.pack('<8sIIQ16s16sQ', *h) + b''.join(struct.pack('<II16s', *x) for x in r)
		open(sys.argv[2], 'wb').write(b + xxhash.xxh3_128(b).digest())
	END
}

@test "sealed well and full of lies: neither believed nor any harm" {
	big disk.vhd
	vhd-sum disk.vhd
	cp disk.vhd.sums good
	hostile ''
	cmp good disk.vhd.sums
	for lie in 'h[6] = 2**63' 'h[6] = 0' 'h[6] += 1' 'r[0][1] = 0' 'r[0][1] = 2**32 - 1' \
		'r[1][0] = 0' 'r.reverse()' 'r[-1][0] = 2**32 - 1' 'h[3] += 512' 'h[2] = 4096' 'h[1] = 2' \
		'r[-1][1] += 1' 'r += [[9, 9, bytes(16)]] * 5000; h[6] += 5000'; do
		hostile "$lie"
		traced -f -y -e trace=pread64 -o trace timeout "$patience" vhd-sum -q --known disk.vhd >/dev/null || fail "$lie"
		[ "$(grep -F "<$PWD/disk.vhd>" trace | awk '{ n += $NF } END { print n + 0 }')" -gt 300000 ] ||
			fail "believed: $lie"
		rm -f disk.vhd.sums
	done
}

@test "what is somebody else's is neither read, followed, waited for nor overwritten" {
	big disk.vhd
	want=$(sum disk.vhd)
	mv disk.vhd.sums good
	vhd-sum disk.vhd >disk.vhd.sums
	[ "$(cat disk.vhd.sums)" = "$want  disk.vhd" ] || fail "overwritten"
	rm disk.vhd.sums
	: >disk.vhd.sums
	vhd-sum disk.vhd
	[ ! -s disk.vhd.sums ] || fail "an empty file was overwritten"
	rm disk.vhd.sums
	ln -s good disk.vhd.sums
	void disk.vhd
	[ -L disk.vhd.sums ]
	rm disk.vhd.sums
	mkfifo disk.vhd.sums
	timeout "$patience" vhd-sum --known disk.vhd
	[ -p disk.vhd.sums ]
	rm disk.vhd.sums
	mkdir disk.vhd.sums
	vhd-sum --known disk.vhd
	rmdir disk.vhd.sums
	nothing_left disk.vhd good
}

@test "only believed where nobody else could have written them" {
	needs_root
	big disk.vhd
	vhd-sum disk.vhd
	chmod 666 disk.vhd.sums
	void disk.vhd
	chown 4711 disk.vhd.sums
	void disk.vhd
	known disk.vhd
}

@test "a folder that cannot be written: no sums and no word" {
	needs_root
	need unshare
	big disk.vhd
	run --separate-stderr unshare -m sh -c 'mount --bind . . && mount -o remount,bind,ro . || exit 99
		cd "$PWD" && vhd-sum disk.vhd'
	assert_status 0
	[ -z "$stderr" ]
	nothing_left disk.vhd
}

@test "no room for them: no sums and no word" {
	big disk.vhd
	run --separate-stderr small_fs 1M 'ln -s "$PWD/disk.vhd" small/; cd small
		dd if=/dev/zero of=fill bs=4k status=none 2>/dev/null; vhd-sum disk.vhd'
	assert_status 0
	mkdir -p full
	run --separate-stderr small_fs 80M 'cp --sparse=always disk.vhd small/; cd small
		dd if=/dev/zero of=fill bs=4k status=none 2>/dev/null; vhd-sum disk.vhd; ls -A'
	assert_status 0
	[ -z "$stderr" ]
	[ "$(tail -n +2 <<<"$output")" = "$(printf 'disk.vhd\nfill')" ]
}

@test "two at once" {
	big disk.vhd
	want=$(sum disk.vhd)
	for _ in 1 2 3; do
		rm disk.vhd.sums
		for i in 1 2 3 4; do
			vhd-sum -q --known disk.vhd >"out.$i" &
		done
		wait
		for i in 1 2 3 4; do
			[ "$(cut -d' ' -f1 "out.$i")" = "$want" ]
		done
		[ "$(read_for disk.vhd)" -eq 0 ]
	done
	rm out.*
	nothing_left disk.vhd disk.vhd.sums
}

@test "any call that fails: the right sum or none, and nothing wrong is believed" {
	big base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	want=$(sum base.vhd)
	calls=openat,lseek,pwrite64,fchmod,fchown,rename,unlink,newfstatat,pread64,sync_file_range
	for n in $(seq 1 5 200); do
		rm -f base.vhd.sums leaf.avhd.sums
		[ $((n % 2)) -eq 0 ] || vhd-sum base.vhd >/dev/null
		status=0
		traced -f -o trace -e trace=$calls -e inject=$calls:error=ENOSPC:when="$n" \
			vhd-sum -q --known leaf.avhd >out 2>err || status=$?
		grep -q INJECTED trace || break
		[ "$status" -ne 0 ] || [ "$(cut -d' ' -f1 out)" = "$want" ] || fail "call $n: $(cat out)"
		[ "$status" -lt 128 ] || [ "$status" -eq 255 ] || fail "call $n: $status"
		[ "$(sum -q --known leaf.avhd)" = "$want" ] || fail "after call $n"
	done
	[ "$n" -gt 60 ]
}

@test "killed while it sums or sends: nothing is left behind" {
	big disk.vhd --fill=100:64K --seed=5
	for _ in 1 2 3; do
		vhd-send --rate-limit=1M disk.vhd >/dev/null 3>&- &
		sleep 0.3
		kill -9 $!
		wait $! || :
	done
	nothing_left disk.vhd
}

@test "killed at any time: nothing wrong is believed" {
	big base.vhd
	vhd-sum base.vhd
	cp base.vhd keep.vhd
	for n in $(seq 1 15); do
		cp keep.vhd base.vhd
		vhd-sum base.vhd >/dev/null
		vhd-snap -q --force base.vhd -o leaf.avhd
		writes leaf.avhd --fill=9:4K --seed="$n"
		killed vhd-merge leaf.avhd
		killed vhd-sum -q --known leaf.avhd
		right leaf.avhd
		vhd-merge leaf.avhd >/dev/null
		right base.vhd
		rm -f leaf.avhd*
	done
}

@test "killed at each call of a merge: what is believed is right" {
	big base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=2:4K --seed=4
	cp base.vhd keep.vhd
	calls=pwrite64,fdatasync,fsync,rename,renameat2,unlink,fallocate,copy_file_range,ftruncate
	for n in $(seq 1 60); do
		cp keep.vhd base.vhd
		vhd-sum base.vhd >/dev/null
		status=0
		traced -f -o /dev/null -e trace=$calls -e inject=$calls:signal=KILL:when="$n" \
			vhd-merge leaf.avhd >/dev/null 2>&1 || status=$?
		right leaf.avhd
		[ $status -ne 0 ] || break
		vhd-merge leaf.avhd >/dev/null
		right base.vhd
		rm -f ./*.sums ./*.absorbed
	done
	[ "$n" -gt 8 ] && [ "$n" -lt 60 ] || fail "$n calls"
}

@test "a base that has absorbed an increment is refused before the first byte, unasked" {
	big base.vhd
	mkdir far
	vhd-send base.vhd | vhd-recv far/base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	vhd-send --from=base.vhd leaf.avhd >s
	vhd-recv --parent=far/base.vhd far/leaf.avhd <s
	vhd-merge --delete far/leaf.avhd
	cd far
	unchanged base.vhd -- vhd-recv --parent=base.vhd leaf.avhd <../s
	assert_status 65
	[[ $stderr == *"content sum $(sum base.vhd), wanted $(sum ../base.vhd)"* ]]
	unchanged base.vhd -- vhd-recv --onto base.vhd <../s
	assert_status 65
	vhd-recv --base-changed --parent=base.vhd leaf.avhd <../s
}

@test "a stale copy that is not the one that was summed is refused before the first byte, unasked" {
	big disk.vhd
	cp disk.vhd stale.vhd
	writes disk.vhd --fill=2:4K --seed=9
	vhd-sum --blocks stale.vhd >stale
	vhd-send --against=stale disk.vhd >s
	[ "$(base_sum s)" = "$(sum stale.vhd)" ]
	cp stale.vhd good.vhd
	writes stale.vhd --fill=1:4K --seed=10
	vhd-sum stale.vhd
	unchanged stale.vhd -- vhd-recv --onto stale.vhd <s
	assert_status 65
	vhd-recv --onto good.vhd <s
	[ "$(sum good.vhd)" = "$(sum disk.vhd)" ]
	vhd-sum --blocks --seed=3 stale.vhd >stale
	vhd-send --against=stale disk.vhd >s
	[ -z "$(base_sum s)" ]
}

# The destination's half of the pipeline takes an increment of src/vda.vhd.
takes_delta() {
	vhd-send -q --from=src/vda.vhd src/vda.avhd | sh -c 'q_dir=$PWD q_name=vm q_uuid=u q_token=t q_hyp=qemu q_local=
		. "$top/scripts/qsm-dest.sh"
		d_lock() { d_part=vda; }
		d_recv_delta vda'
}

@test "the pipeline tries an increment again after an earlier one of the same base was taken in" {
	mkdir -p src vm/.qsm
	big src/vda.vhd
	vhd-send src/vda.vhd | vhd-recv vm/vda.vhd
	vhd-snap -q src/vda.vhd -o src/vda.avhd
	for seed in 3 4; do
		writes src/vda.avhd --fill=3:4K --seed=$seed
		takes_delta
	done
	[ "$(sum vm/vda.vhd)" = "$(sum src/vda.avhd)" ]
	right vm/vda.vhd
	# nobody but the pipeline knows that this is right
	rm vm/.qsm/changed.vda
	run takes_delta
	assert_status 65
}

@test "an increment reads of the base what it touches and no more" {
	big base.vhd
	mkdir far
	vhd-send base.vhd | vhd-recv far/base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	tool_of vhd-send --from=base.vhd leaf.avhd >s
	[ "$(bytes_read base.vhd)" -lt 150000 ]
	[ "$(base_sum s)" = "$(sum base.vhd)" ]
	tool_of vhd-recv --parent=far/base.vhd far/leaf.avhd <s
	[ "$(bytes_read far/base.vhd)" -lt 150000 ]
	tool_of vhd-merge --delete far/leaf.avhd
	[ "$(bytes_read far/base.vhd)" -lt 150000 ]
}

@test "where too much is unknown the sum of the base is left out, and not read" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o a.avhd
	writes a.avhd --fill=24:1M --seed=2
	vhd-snap -q a.avhd -o b.avhd
	writes b.avhd --fill=3:4K --seed=3
	tool_of vhd-send --from=a.avhd b.avhd >s
	[ "$(bytes_read a.avhd)" -lt 150000 ]
	[ -z "$(base_sum s)" ]
	vhd-sum --known a.avhd
	vhd-send --from=a.avhd b.avhd >s
	[ "$(base_sum s)" = "$(sum a.avhd)" ]
}

@test "--verify-base reads all of it at both sides" {
	big base.vhd
	mkdir far
	vhd-send base.vhd | vhd-recv far/base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	tool_of vhd-send --verify-base --from=base.vhd leaf.avhd >s
	[ "$(bytes_read base.vhd)" -gt 300000 ]
	tool_of vhd-recv --verify-base --parent=far/base.vhd far/leaf.avhd <s
	[ "$(bytes_read far/base.vhd)" -gt 300000 ]
}

@test "a dry run tells the bytes of a stream with the sum of its base" {
	big base.vhd
	vhd-sum base.vhd
	vhd-snap -q base.vhd -o leaf.avhd
	writes leaf.avhd --fill=3:4K --seed=2
	vhd-send --from=base.vhd leaf.avhd >s
	[ "$(vhd-send --dry-run --json --from=base.vhd leaf.avhd | jq .bytes)" -eq "$(stat -c %s s)" ]
	[ "$(vhd-send --dry-run=map --json --from=base.vhd leaf.avhd | jq .bytes)" -ge "$(stat -c %s s)" ]
}

@test "--keep reads what is not known, says nothing, and reads nothing that it could not keep" {
	big disk.vhd
	model make small.vhd --size=8M --fill=20:64K
	tool_of vhd-sum --keep disk.vhd small.vhd >out
	[ ! -s out ]
	[ "$(bytes_read disk.vhd)" -gt 300000 ]
	[ "$(bytes_read small.vhd)" -lt 20000 ]
	known disk.vhd
	tool_of vhd-sum --keep disk.vhd
	[ "$(bytes_read disk.vhd)" -lt 150000 ]
	refused 66 vhd-sum --keep gone disk.vhd
	refused 64 vhd-sum --keep --json disk.vhd
	refused 64 vhd-sum --keep --blocks disk.vhd
}

@test "vhd-check and vhd-repair have nothing to say about them" {
	big disk.vhd
	vhd-sum disk.vhd
	printf x >>disk.vhd.sums
	run --separate-stderr vhd-check disk.vhd
	assert_status 0
	[ -z "$stderr" ]
}

@test "vhd-info tells whether the sums are known" {
	big base.vhd
	[ "$(vhd-info --json base.vhd | jq '.files[0].sums_known')" = false ]
	vhd-sum base.vhd
	[ "$(vhd-info --json base.vhd | jq '.files[0].sums_known')" = true ]
	vhd-info base.vhd | grep '^  sums  *known'
	vhd-snap -q --output=leaf.avhd base.vhd
	[ "$(vhd-info --json leaf.avhd | jq '.files[0].sums_known')" = null ]
	[ "$(vhd-info --json --chain leaf.avhd | jq -c '[.files[0].chain[].sums_known]')" = "[true,true]" ]
	writes leaf.avhd --fill=3:4K --seed=2
	[ "$(vhd-info --json --chain leaf.avhd | jq -c '[.files[0].chain[].sums_known]')" = "[false,true]" ]
	run vhd-info leaf.avhd
	[[ $output != *"sums "* ]]
}
