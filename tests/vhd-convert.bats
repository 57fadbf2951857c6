# SPDX-License-Identifier: BSD-2-Clause
# vhd-convert: the same content in another format, whole or not at all.
load helper
load disks

setup() {
	workdir
}

# leaf.avhd on base.vhd, reading as leaf.raw
chain() {
	model make base.vhd --size=8M --fill=20:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=40:512 --raw=leaf.raw --seed=2 --block=64K
}

@test "a chain becomes raw, fixed and dynamic" {
	chain
	for t in raw fixed dynamic; do
		run --separate-stderr vhd-convert --type=$t leaf.avhd "$t"
		assert_status 0
		[ -z "$output$stderr" ]
	done
	cmp raw leaf.raw
	is_raw fixed leaf.raw
	is_raw dynamic leaf.raw
	sound --strict fixed dynamic
	[ "$(field fixed foot.type)" = 2 ]
	[ "$(field dynamic foot.type)" = 3 ]
}

@test "every format into every other and back" {
	model make dynamic --size=4M --fill=20:4K --raw=want.raw
	vhd-convert --type=fixed dynamic fixed
	vhd-convert --type=raw fixed raw
	vhd-convert --type=dynamic --from=raw raw dynamic2
	vhd-convert --type=raw dynamic2 raw2
	vhd-convert --type=fixed --from=raw raw2 fixed2
	vhd-convert --type=dynamic fixed2 dynamic3
	vhd-convert --type=dynamic dynamic3 dynamic4
	vhd-convert --type=raw dynamic4 raw3
	cmp raw3 want.raw
}

@test "the sources stay as they are" {
	chain
	before=$(sha base.vhd leaf.avhd; stat -c '%Y %s' base.vhd leaf.avhd)
	vhd-convert --type=dynamic leaf.avhd copy.vhd
	[ -s copy.vhd ]
	[ "$before" = "$(sha base.vhd leaf.avhd; stat -c '%Y %s' base.vhd leaf.avhd)" ]
}

@test "the copy is another disk" {
	chain
	vhd-convert --type=dynamic base.vhd copy.vhd
	sound --strict copy.vhd
	[ "$(field base.vhd foot.uid)" != "$(field copy.vhd foot.uid)" ]
}

@test "blocks of zeros are dropped" {
	model make disk.vhd --size=64M --fill=32:2M --zeros=1 --seq
	[ "$(field disk.vhd blocks)" -eq 32 ]
	model write disk.vhd --fill=1:512 --zeros=0 --raw=want.raw
	vhd-convert --type=dynamic disk.vhd small.vhd
	[ "$(field small.vhd blocks)" -eq 1 ]
	[ "$(stat -c %s small.vhd)" -lt 2200000 ]
	is_raw small.vhd want.raw
}

@test "holes stay holes" {
	model make disk.vhd --size=1G --fill=1:4K --zeros=0
	vhd-convert --type=raw disk.vhd raw
	vhd-convert --type=fixed disk.vhd fixed
	[ "$(stat -c %b raw)" -lt 20000 ]
	[ "$(stat -c %b fixed)" -lt 20000 ]
	[ "$(stat -c %s raw)" -eq 1073741824 ]
	model cmp disk.vhd fixed
}

@test "a disk of 2040 GiB takes seconds if it is empty" {
	vhd-create --size=2040G big.vhd
	run timeout "$patience" vhd-convert --type=dynamic big.vhd copy.vhd
	assert_status 0
	sound --strict copy.vhd
}

@test "raw to standard output, into a pipe" {
	chain
	vhd-convert --type=raw leaf.avhd - | cmp - leaf.raw
	[ "$(vhd-convert -q --type=raw leaf.avhd - | wc -c)" -eq 8388608 ]
}

@test "binary data never goes to a terminal" {
	need script
	chain
	run script -qec "vhd-convert --type=raw leaf.avhd -" /dev/null </dev/null
	assert_status 64
	[ "${#output}" -lt 1000 ]
}

@test "only raw can be written to standard output" {
	chain
	refused 64 vhd-convert --type=dynamic leaf.avhd -
	[ ! -e ./- ]
}

@test "a full standard output is an I/O error" {
	chain
	run bash -c 'vhd-convert -q --type=raw leaf.avhd - >/dev/full'
	assert_status 74
}

@test "a reader that goes away is an error, not a success" {
	chain
	run bash -c 'set -o pipefail; vhd-convert -q --type=raw leaf.avhd - | head -c 10 >/dev/null; echo ${PIPESTATUS[0]}'
	[ "${lines[-1]}" -eq 69 ]
}

@test "a file that is no VHD needs --from=raw" {
	truncate -s 1M disk.img
	refused 65 vhd-convert --type=dynamic disk.img disk.vhd
	[[ $stderr == *--from=raw* ]]
	[ ! -e disk.vhd ]
	vhd-convert --type=dynamic --from=raw disk.img disk.vhd
	sound --strict disk.vhd
}

@test "--from=raw takes a VHD as what it is on disk" {
	model make disk.vhd --kind=fixed --size=1M --fill=9:4K
	vhd-convert --type=raw --from=raw disk.vhd copy.raw
	cmp disk.vhd copy.raw
}

@test "only raw can be forced" {
	truncate -s 1M disk.img
	refused 64 vhd-convert --type=dynamic --from=qcow2 disk.img disk.vhd
}

@test "a raw size that is no multiple of 512 needs --pad" {
	head -c 100000 /dev/urandom >disk.img
	refused 65 vhd-convert --type=dynamic --from=raw disk.img disk.vhd
	[[ $stderr == *--pad* ]]
	[ ! -e disk.vhd ]
	vhd-convert --type=dynamic --from=raw --pad disk.img disk.vhd
	[ "$(field disk.vhd foot.size)" = 100352 ]
	vhd-convert --type=raw disk.vhd back.img
	cmp -n 100000 back.img disk.img
	[ "$(tail -c 352 back.img | tr -d '\0' | wc -c)" -eq 0 ]
}

@test "--pad leaves a size alone that fits" {
	truncate -s 1M disk.img
	vhd-convert --type=fixed --from=raw --pad disk.img disk.vhd
	[ "$(field disk.vhd foot.size)" = 1048576 ]
}

@test "an empty raw file is refused" {
	touch empty
	refused 65 vhd-convert --type=dynamic --from=raw empty disk.vhd
	[ ! -e disk.vhd ]
}

@test "a destination that exists is not overwritten" {
	chain
	echo precious >copy.vhd
	unchanged copy.vhd base.vhd leaf.avhd -- vhd-convert --type=dynamic leaf.avhd copy.vhd
	assert_status 73
	vhd-convert --force --type=dynamic leaf.avhd copy.vhd
	is_raw copy.vhd leaf.raw
}

@test "neither the source nor its parents can be the destination" {
	chain
	ln base.vhd hard.vhd
	ln -s base.vhd soft.vhd
	for d in leaf.avhd ./leaf.avhd base.vhd hard.vhd soft.vhd "$PWD/base.vhd"; do
		unchanged base.vhd leaf.avhd -- vhd-convert --force --type=dynamic leaf.avhd "$d"
		assert_status 64
	done
}

@test "type, source and destination must be given" {
	chain
	refused 64 vhd-convert leaf.avhd copy.vhd
	refused 64 vhd-convert --type=dynamic leaf.avhd
	refused 64 vhd-convert --type=dynamic
	refused 64 vhd-convert --type=dynamic leaf.avhd a b
	refused 64 vhd-convert --type=vhdx leaf.avhd copy.vhd
	[ ! -e copy.vhd ]
}

@test "a missing source, and a missing folder" {
	chain
	refused 66 vhd-convert --type=raw gone.vhd copy
	refused 73 vhd-convert --type=raw leaf.avhd nowhere/copy
	rm base.vhd
	refused 66 vhd-convert --type=raw leaf.avhd copy
	[ ! -e copy ]
}

@test "a cut VHD is refused, whatever is left of it" {
	model make disk.vhd --size=8M --fill=20:4K
	model make fixed.vhd --kind=fixed --size=1M --fill=20:4K
	vhd-convert --type=raw disk.vhd whole.raw
	size=$(stat -c %s disk.vhd)
	for n in $((size - 6000)) $((size / 2)) 4096 2048 1536 1000; do
		head -c $n disk.vhd >cut.vhd
		refused 65 vhd-convert --type=raw cut.vhd copy
		[ ! -e copy ] || fail "$n"
	done
	for n in 1048576 1000000 512; do
		head -c $n fixed.vhd >cut.vhd
		refused 65 vhd-convert --type=raw cut.vhd copy
		[ ! -e copy ] || fail "$n"
	done
}

@test "a source in use by a writer is 75" {
	chain
	hold base.vhd write
	refused 75 vhd-convert --type=raw leaf.avhd copy
	release
	[ ! -e copy ]
}

@test "no space: 73, and nothing is left behind" {
	head -c 4M /dev/urandom >disk.img
	for t in raw fixed dynamic; do
		run small_fs 1m "vhd-convert -q --from=raw --type=$t disk.img small/copy; s=\$?; ls -A small >&2; exit \$s"
		assert_status 73
		[ "${#lines[@]}" -eq 1 ] || fail "something is left, or no message"
	done
}

@test "ended by a signal: nothing is left behind" {
	need strace
	head -c 4M /dev/urandom >disk.img
	mkdir out
	for s in INT TERM; do
		for n in 1 3; do
			run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64,copy_file_range \
				-e inject=pwrite64,copy_file_range:signal=$s:when=$n \
				vhd-convert --from=raw --type=dynamic disk.img out/copy.vhd
			grep -q "SIG$s" trace || continue
			caught=yes
			[ "$status" -eq 75 ] || [ "$status" -eq 0 ] || fail "status after SIG$s"
			[ "$status" -eq 0 ] || [ -z "$(ls -A out)" ] || fail "left behind: $(ls -A out)"
			rm -f out/copy.vhd
		done
	done
	[ -n "$caught" ]
}

@test "killed at any write, the destination is whole or not there" {
	need strace
	model make disk.vhd --size=4M --fill=20:4K --block=512K --raw=want.raw
	for call in pwrite64 fallocate ftruncate copy_file_range fsync fdatasync rename renameat renameat2 linkat; do
		for n in 1 2 3 5 8 13; do
			run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=$call \
				-e inject=$call:signal=KILL:when=$n vhd-convert --type=dynamic disk.vhd copy.vhd
			if [ "$status" -eq 0 ]; then
				rm -f copy.vhd
				break
			fi
			assert_status 137
			killed=yes
			[ ! -e copy.vhd ] || is_raw copy.vhd want.raw
			rm -f copy.vhd
		done
	done
	[ -n "$killed" ]
}

@test "a failing fsync is an I/O error, and nothing appears" {
	need strace
	chain
	for call in fsync fdatasync; do
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=$call \
			-e inject=$call:error=EIO:when=1 vhd-convert --type=dynamic base.vhd copy.vhd
		if grep -q INJECTED trace; then
			injected=yes
			assert_status 74
			[ ! -e copy.vhd ]
		fi
		rm -f copy.vhd
	done
	[ -n "$injected" ]
}

@test "a bad sector of the source is an I/O error, never zeros" {
	need strace
	chain
	for call in pread64 copy_file_range; do
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -P base.vhd -e trace=$call \
			-e inject=$call:error=EIO:when=4+ vhd-convert --type=dynamic leaf.avhd copy.vhd
		if [ $call = pread64 ]; then
			grep -q INJECTED trace || fail "nothing was injected"
			assert_status 74
		fi
		[ "$status" -eq 0 ] || [ ! -e copy.vhd ]
		rm -f copy.vhd
	done
}

@test "a destination that is a dangling link is not followed" {
	chain
	ln -s elsewhere copy.vhd
	refused 73 vhd-convert --type=raw leaf.avhd copy.vhd
	[ ! -e elsewhere ]
}

@test "the file's permissions follow the umask" {
	chain
	(umask 027; vhd-convert --type=dynamic leaf.avhd copy.vhd; vhd-create --size=1M new.vhd)
	[ "$(stat -c %a copy.vhd new.vhd | sort -u)" = 640 ]
}

# loop FILE: a block device over it, in $device, until the test ends
loop() {
	needs_root
	need losetup
	device=$(losetup -f --show "$1" 2>/dev/null) || skip "needs loop devices"
	loops="${loops-} $device"
}

teardown() {
	local l
	for l in ${loops-}; do
		losetup -d "$l"
	done
}

@test "--azure: fixed, whole mebibytes, the exact size everywhere" {
	for n in 0 512 1048576 3000320; do
		size=$((20971520 + n))
		model make d.vhd --size=$size --fill=9:4K --raw=raw
		vhd-convert -q --azure d.vhd out.vhd
		truncate -s $(((size + 1048575) / 1048576 * 1048576)) raw
		is_raw out.vhd raw
		sound --strict out.vhd
		[ "$(stat -c %s out.vhd)" = $(($(stat -c %s raw) + 512)) ]
		rm raw d.vhd out.vhd
	done
}

@test "--azure pads any raw disk, and is no other type" {
	head -c 1000001 /dev/urandom >in.img
	vhd-convert -q --azure --from=raw in.img out.vhd
	truncate -s 1M in.img
	is_raw out.vhd in.img
	vhd-convert -q --azure --type=fixed -f --from=raw in.img out.vhd
	run --separate-stderr vhd-convert --azure --type=dynamic --from=raw in.img no.vhd
	assert_status 64
	[ ! -e no.vhd ]
}

@test "a block device as the source, raw or with a VHD on it" {
	model make d.vhd --size=8M --block=64K --fill=60:4K --raw=raw
	cp raw raw.img
	loop raw.img
	run --separate-stderr vhd-convert --type=dynamic "$device" out.vhd
	assert_status 65
	vhd-convert -q --type=dynamic --from=raw "$device" out.vhd
	is_raw out.vhd raw
	loop d.vhd
	vhd-convert -q --type=raw "$device" out.raw
	cmp out.raw raw
}

@test "a block device as the destination: written in place, only with --force, zeros too" {
	model make d.vhd --size=8M --block=64K --fill=60:4K --raw=raw
	head -c 9M /dev/urandom >dev.img
	tail -c 1M dev.img >behind
	loop dev.img
	run --separate-stderr vhd-convert --type=raw d.vhd "$device"
	assert_status 73
	[[ $stderr == *--force* ]]
	for t in fixed dynamic; do
		run --separate-stderr vhd-convert -f --type=$t d.vhd "$device"
		assert_status 64
	done
	vhd-convert -q -f --type=raw d.vhd "$device"
	cat raw behind | cmp - "$device"
	[ -b "$device" ]
}

@test "a block device that is too small, or mounted, is not written" {
	model make d.vhd --size=8M --block=64K --fill=60:4K
	truncate -s 4M dev.img
	loop dev.img
	run --separate-stderr vhd-convert -f --type=raw d.vhd "$device"
	assert_status 73
	need mkfs.ext4
	truncate -s 16M fs.img
	mkfs.ext4 -q fs.img
	loop fs.img
	mkdir mnt
	mount "$device" mnt || skip "cannot mount"
	before=$(sha fs.img)
	run --separate-stderr vhd-convert -f --type=raw d.vhd "$device"
	# It is busy for a moment when somebody looks at all open files just then.
	wait_for umount mnt
	assert_status 75
	e2fsck -fn fs.img >/dev/null
}

@test "a device is not copied onto itself, by whatever name" {
	head -c 4M /dev/urandom >dev.img
	before=$(sha dev.img)
	loop dev.img
	mknod other b "$((0x$(stat -c %t "$device")))" "$((0x$(stat -c %T "$device")))"
	for d in "$device" ./other; do
		run --separate-stderr vhd-convert -f --type=raw --from=raw "$device" $d
		assert_status 64
	done
	[ "$(sha dev.img)" = "$before" ]
}

@test "holes of the source cost no time, in a fixed disk and in a chain" {
	vhd-create --type=fixed --size=2040G f.vhd
	model write f.vhd --fill=3:4K
	limited vhd-convert -q --type=dynamic f.vhd d.vhd
	vhd-snap -q d.vhd --output=d.avhd >/dev/null
	limited vhd-convert -q --type=fixed d.avhd g.vhd
	[ "$(du -k g.vhd | cut -f1)" -lt 200 ]
	model cmp f.vhd g.vhd
}
