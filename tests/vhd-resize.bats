# SPDX-License-Identifier: BSD-2-Clause
# vhd-resize: larger, or smaller where nothing is lost; old or new whatever happens.
load helper
load disks

setup() {
	workdir
}

teardown() {
	[ -z "${fast-}" ] || rm -rf "$fast"
}

# resized FILE SIZE [OPTION…]: succeeds, and the file is sound and has that size
resized() {
	local f=$1 size=$2
	shift 2
	run --separate-stderr vhd-resize --size="$size" "$@" -- "$f"
	assert_status 0
	[ -z "$stderr" ] || fail "$stderr"
	sound "$f"
	[ "$(vhd-info --json -- "$f" | jq .files[0].size)" = "$size" ] || fail "the size"
	[ ! -e "$f.rollback" ]
}

# refuses STATUS TEXT FILE COMMAND…: so, and FILE is as it was
refuses() {
	local want=$1 text=$2 file=$3
	shift 3
	unchanged "$file" -- limited "$@"
	assert_status "$want"
	[ -z "$output" ] || fail "standard output"
	[[ $stderr == *"$text"* ]] || fail "$stderr"
}

@test "a dynamic disk grows: old content, then zeros" {
	model make d.vhd --size=8M --fill=20:4K --raw=raw
	resized d.vhd $((12 << 20))
	truncate -s 12M raw
	is_raw d.vhd raw
}

@test "every block size, from a size inside a block to one inside another" {
	for b in 4K 64K 2M 8M; do
		model make d.vhd --size=3000320 --block=$b --fill=40:512 --raw=raw
		resized d.vhd 9000448
		truncate -s 9000448 raw
		is_raw d.vhd raw
		model write d.vhd --fill=60:4K --raw=raw --seed=3
		is_raw d.vhd raw
		sound d.vhd
		rm d.vhd raw
	done
}

@test "the table moves when there is no room, and can move again" {
	model make d.vhd --size=1M --block=4K --fill=60:4K --raw=raw
	for size in 2 9 10 64; do
		before=$(field d.vhd head.table_offset)
		resized d.vhd $((size << 20))
		truncate -s "${size}M" raw
		is_raw d.vhd raw
		case $size in
		9 | 64) [ "$before" != "$(field d.vhd head.table_offset)" ] || fail "where is the table?" ;;
		esac
		model write d.vhd --fill=30:4K --raw=raw --seed="$size"
		sound d.vhd
	done
	[ "$(field d.vhd head.entries)" = $((64 << 8)) ]
	is_raw d.vhd raw
}

@test "padding behind the table is used before it is moved" {
	# Windows pads the table to 4 KiB.
	vhd-create --size=8M d.vhd
	at=$(field d.vhd head.table_offset)
	resized d.vhd $((1 << 30))
	[ "$(field d.vhd head.table_offset)" = "$at" ]
	sound --strict d.vhd || [ "$(field d.vhd foot.original)" = $((8 << 20)) ]
}

@test "a table with nothing behind it stays where it is" {
	need qemu-img
	qemu-img create -q -f vpc -o force_size=on q.vhd 8M
	resized q.vhd $((3 << 30))
	[ "$(field q.vhd head.table_offset) $(field q.vhd head.entries)" = "1536 1536" ]
	model write q.vhd --fill=9:4K
	sound q.vhd
}

@test "room in the table that others left is taken as it is, whatever stands there" {
	model make d.vhd --size=4M --block=64K --entries=5000 --fill=20:4K --raw=raw
	at=$(field d.vhd head.table_offset)
	"$python" -c 'import os,sys; f=os.open("d.vhd",1); os.pwrite(f,b"\0\0\1\2"*100,int(sys.argv[1])+256)' "$at"
	resized d.vhd $((16 << 20))
	[ "$(field d.vhd head.table_offset)" = "$at" ]
	truncate -s 16M raw
	is_raw d.vhd raw
}

@test "what lay behind the end in the last block does not show" {
	for kind in dynamic differencing; do
		rm -f ./*.vhd raw
		model make base.vhd --size=100352 --block=64K --fill=20:4K --raw=raw
		f=base.vhd
		if [ $kind = differencing ]; then
			model make d.vhd --parent=base.vhd --block=64K --fill=60:512 --raw=raw
			f=d.vhd
		fi
		[ "$(field $f bat.1)" != 4294967295 ]
		at=$(field $f data.1)
		"$python" -c 'import os,sys; f=os.open(sys.argv[2],1); os.pwrite(f,b"x"*30720,int(sys.argv[1])+34816); os.pwrite(f,b"\xff"*16,int(sys.argv[1])-512)' "$at" $f
		model cat $f >raw
		resized $f 131072
		truncate -s 131072 raw
		is_raw $f raw
	done
}

@test "a child grows beyond its parent, and can be merged no worse than before" {
	model make base.vhd --size=4M --fill=20:4K --raw=raw
	model make leaf.avhd --parent=base.vhd --fill=40:512 --raw=raw --seed=2
	run --separate-stderr vhd-resize --size=6M leaf.avhd
	assert_status 0
	truncate -s 6M raw
	[ "$(our_sha leaf.avhd 2>/dev/null)" = "$(sha raw)" ]
	model write leaf.avhd --fill=40:4K --raw=raw --seed=5
	is_raw leaf.avhd raw
	sound leaf.avhd
}

@test "a child of another size than its parent is sound, with a warning" {
	model make base.vhd --size=4M
	for s in 2M 6M; do
		model make leaf.avhd --parent=base.vhd --size=4M --fill=20:4K --seq
		vhd-resize -q --size=$s leaf.avhd
		run --separate-stderr vhd-check --chain leaf.avhd
		assert_status 0
		assert_output_has "warning parent-wrong-size"
	done
}

@test "a child of a raw disk grows, and still knows its parent" {
	truncate -s 4M base.img
	model make leaf.avhd --parent=base.img --raw-parent --size=4M --fill=40:512 --raw=raw
	vhd-resize -q --size=8M leaf.avhd
	truncate -s 8M raw
	[ "$(our_sha leaf.avhd)" = "$(sha raw)" ]
	truncate -s 5M base.img
	run vhd-sum leaf.avhd
	assert_status 65
}

@test "a raw parent is found after every change of size" {
	truncate -s 4M base.img
	model make leaf.avhd --parent=base.img --raw-parent --size=4M --fill=9:512 --seq --raw=raw
	vhd-resize -q --size=6M leaf.avhd
	vhd-merge -q leaf.avhd >/dev/null
	for s in 2M 8M 3M; do
		vhd-resize -q --size=$s leaf.avhd
		truncate -s $s raw
		[ "$(our_sha leaf.avhd)" = "$(sha raw)" ]
	done
}

@test "a fixed disk grows: the old footer does not show" {
	model make f.vhd --kind=fixed --size=4M --fill=40:4K --raw=raw
	resized f.vhd $((5 << 20))
	truncate -s 5M raw
	is_raw f.vhd raw
	[ "$(stat -c %s f.vhd)" = $(((5 << 20) + 512)) ]
}

@test "a footer of 511 bytes becomes a whole one" {
	for k in fixed dynamic; do
		model make $k.vhd --kind=$k --size=4M --fill=40:4K --raw=$k.raw --foot511
		resized $k.vhd $((5 << 20))
		truncate -s 5M $k.raw
		is_raw $k.vhd $k.raw
		[ $(($(stat -c %s $k.vhd) % 512)) = 0 ]
	done
}

@test "growing costs no space" {
	vhd-create --size=1G d.vhd
	vhd-create --type=fixed --size=1G f.vhd
	resized d.vhd $((2040 << 30))
	resized f.vhd $((2040 << 30))
	[ "$(du -k d.vhd | cut -f1)" -lt 5000 ] && [ "$(du -k f.vhd | cut -f1)" -lt 100 ]
}

@test "both sizes: the original one stays, geometry follows, identity stays" {
	model make d.vhd --size=8M --fill=9:4K
	uuid=$(field d.vhd foot.uid)
	resized d.vhd $((1 << 30))
	[ "$(field d.vhd foot.original)" = $((8 << 20)) ]
	[ "$(field d.vhd foot.uid)" = "$uuid" ]
	[ "$(field d.vhd foot.cylinders)/$(field d.vhd foot.heads)/$(field d.vhd foot.spt)" = 2080/16/63 ]
}

@test "QEMU sees the new size, whoever made the disk" {
	need qemu-img
	for c in win win7 tap qemu qem2 d2v vbox; do
		model make $c.vhd --size=8M --creator=$c --fill=9:4K
		resized $c.vhd $((100 << 20))
		run qemu-img info -f vpc --output=json $c.vhd
		[ "$(jq '.["virtual-size"]' <<<"$output")" = $((100 << 20)) ] || fail "$c"
	done
}

@test "QEMU and 7-Zip read a disk whose table has moved, and QEMU writes to it" {
	need qemu-img qemu-io 7zz
	model make d.vhd --size=8M --block=64K --fill=60:4K --raw=raw
	at=$(field d.vhd head.table_offset)
	resized d.vhd $((200 << 20))
	[ "$(field d.vhd head.table_offset)" != "$at" ]
	truncate -s 200M raw
	[ "$(7zz x -so -tVHD d.vhd 2>/dev/null | sha256sum | cut -d' ' -f1)" = "$(sha raw)" ]
	qemu-img convert -f vpc -O raw d.vhd seen
	cmp seen raw
	qemu-io -f vpc -c 'write -P 7 150M 1M' d.vhd >/dev/null
	head -c 1M /dev/zero | tr '\0' '\7' | dd of=raw bs=1M seek=150 conv=notrunc status=none
	is_raw d.vhd raw
	sound d.vhd
}

@test "bytes that we do not know survive" {
	model make d.vhd --size=4M --fill=9:4K
	model poke d.vhd foot.reserved=hex:41424344 head.reserved2=hex:45464748 head.reserved1=7 foot.hidden=1
	resized d.vhd $((3 << 30))
	[[ $(field d.vhd foot.reserved) == "b'ABCD"* && $(field d.vhd foot.hidden) = 1 ]]
	[[ $(field d.vhd head.reserved2) == "b'EFGH"* ]]
	[ "$(field d.vhd head.reserved1)" = 7 ]
}

@test "a disk becomes smaller where only zeros are lost, and its file too" {
	for k in dynamic fixed; do
		model make $k.vhd --kind=$k --size=16M --block=64K --fill=60:4K --zeros=0 --seq --raw=raw
		model write $k.vhd --fill=3:4K --zeros=1 --seed=4 --raw=raw
		resized $k.vhd $((8 << 20))
		truncate -s 8M raw
		is_raw $k.vhd raw
		[ "$(stat -c %s $k.vhd)" -lt $((9 << 20)) ]
		rm raw
	done
}

@test "shrunk and grown again: zeros" {
	vhd-create --size=4M --block-size=64K d.vhd
	model write d.vhd --fill=20:4K --seq --zeros=0 --raw=raw
	"$python" - "$top/tests/model" <<-'END'
		import sys
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		e = vhdmodel.Editor('d.vhd')
		for b in (20, 40, 50):
		    e.write(b * 65536, bytes(65536))
		e.finish()
	END
	[ "$(field d.vhd blocks)" -gt 4 ]
	resized d.vhd $((1 << 20))
	resized d.vhd $((5 << 20))
	truncate -s 5M raw
	is_raw d.vhd raw
}

@test "a smaller size that would lose data is refused, and the offset named" {
	for k in dynamic fixed; do
		model make $k.vhd --kind=$k --size=8M --fill=1:512 --seq --zeros=0
		"$python" - "$top/tests/model" $k.vhd <<-'END'
			import sys
			sys.path.insert(0, sys.argv[1])
			import vhdmodel
			e = vhdmodel.Editor(sys.argv[2])
			e.write(6000128, bytes(100) + b'x' + bytes(411))
			e.write(7000064, b'x' * 512)
			e.finish()
		END
		for f in "" --force; do
			# shellcheck disable=SC2086
			refuses 78 6000228 $k.vhd vhd-resize $f --size=4M $k.vhd
		done
		refuses 78 7000064 $k.vhd vhd-resize --size=6000640 $k.vhd
		resized $k.vhd 7000576
	done
}

@test "data of a parent counts as well" {
	model make base.vhd --size=8M --fill=2048:4K --seq --zeros=0
	model make leaf.avhd --parent=base.vhd --fill=3:512 --seq
	refuses 78 4194304 leaf.avhd vhd-resize --size=4M leaf.avhd
}

@test "a disk with children is refused without --force, the child named" {
	model make base.vhd --size=4M --fill=20:4K
	model make 'a child.avhd' --parent=base.vhd --fill=3:512
	refuses 78 'a child.avhd' base.vhd vhd-resize --size=8M base.vhd
	mkdir sub
	mv 'a child.avhd' sub/
	refuses 78 'sub/a child.avhd' base.vhd vhd-resize --parent-dir=sub --size=8M base.vhd
	resized base.vhd $((8 << 20))
	mv 'sub/a child.avhd' .
	resized base.vhd $((9 << 20)) --force
}

@test "FIFOs and rubbish beside the disk do not matter" {
	model make base.vhd --size=4M --fill=20:4K
	mkfifo fifo
	head -c 3000 /dev/urandom >junk
	ln -s /dev/zero zero
	ln -s loop loop
	run --separate-stderr limited vhd-resize --size=8M base.vhd
	assert_status 0
}

@test "a disk that a saved machine depends on is refused without --force" {
	model make d.vhd --size=4M --saved=1
	refuses 78 saved d.vhd vhd-resize --size=8M d.vhd
	resized d.vhd $((8 << 20)) --force
}

@test "sizes that cannot be" {
	vhd-create --size=4M d.vhd
	for s in 0 1 513 2041G 8388607T -1 x '' 10X; do
		refuses 64 '' d.vhd vhd-resize --size="$s" d.vhd
	done
	refuses 64 size d.vhd vhd-resize d.vhd
	refuses 64 FILE d.vhd vhd-resize --size=1M
	refuses 64 FILE d.vhd vhd-resize --size=1M d.vhd d.vhd
}

@test "the size that it has: nothing is written" {
	vhd-create --size=4M d.vhd
	unchanged d.vhd -- vhd-resize --size=4M d.vhd
	assert_status 0
	assert_output_has already
}

@test "--dry-run finds what stands in the way, and changes nothing" {
	vhd-create --size=4M d.vhd
	unchanged d.vhd -- vhd-resize -n --size=8G d.vhd
	assert_status 0
	assert_output_has "would be"
	model write d.vhd --fill=1000:4K --zeros=0
	refuses 78 data d.vhd vhd-resize -n --size=1M d.vhd
}

@test "--json" {
	vhd-create --size=4M d.vhd
	run --separate-stderr vhd-resize --json --size=8G d.vhd
	assert_status 0
	[ "$(json '[.version, .file, .old_size, .size, .changed, .dry_run] | map(tostring) | join(" ")')" = \
		"1 d.vhd 4194304 8589934592 true false" ]
	[ "$(json .file_size)" = "$(stat -c %s d.vhd)" ]
}

@test "a disk in use is 75" {
	vhd-create --size=4M d.vhd
	for m in read write; do
		hold d.vhd $m
		run --separate-stderr vhd-resize --size=8M d.vhd
		assert_status 75
		release
	done
}

@test "not while a merge is half done" {
	need strace
	model make base.vhd --size=4M --block=64K --fill=20:4K --raw=raw
	model make leaf.avhd --parent=base.vhd --block=64K --fill=40:512 --raw=raw
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=fdatasync -e inject=fdatasync:signal=KILL:when=3 vhd-merge leaf.avhd
	[ -e base.vhd.merging ]
	for f in base.vhd leaf.avhd; do
		refuses 75 vhd-merge $f vhd-resize --force --size=8M $f
	done
	vhd-merge --delete leaf.avhd
	resized base.vhd $((8 << 20))
}

@test "old bytes that could not be looked for are put back all the same" {
	need strace
	vhd-create --size=4M d.vhd
	vhd-sum d.vhd >sum
	# The third write to the disk; those before it are the sidecar's.
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:signal=KILL:when=14 vhd-resize -q --size=8M d.vhd
	[ -e d.vhd.rollback ]
	ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -P "$PWD/d.vhd.rollback" -e trace=newfstatat \
		-e inject=newfstatat:error=EIO:when=1 vhd-sum --check sum
	grep -q INJECTED trace
	[ ! -e d.vhd.rollback ]
}

@test "a batmap that is larger than any disk is none" {
	model make d.vhd --size=4M --creator=tap --block=64K --fill=20:4K --raw=raw
	"$python" - "$top/tests/model" <<-'END'
		import os, struct, sys
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		e = vhdmodel.Editor('d.vhd')
		at = e.batmap()[0]
		os.pwrite(e.fd, struct.pack('>I', 0x7fffff), at + 16)
		os.ftruncate(e.fd, 20 << 30)
	END
	run --separate-stderr limited vhd-resize --size=8M d.vhd
	assert_status 0
	truncate -s 8M raw
	[ "$(our_sha d.vhd)" = "$(sha raw)" ]
}

@test "no VHD, a missing one, damage" {
	head -c 5000 /dev/urandom >junk
	refuses 65 '' junk vhd-resize --size=8M junk
	refuses 66 gone junk vhd-resize --size=8M gone
	model make d.vhd --size=4M --block=64K --fill=60:4K
	model poke d.vhd bat.3=4294967000
	refuses 65 BAT d.vhd vhd-resize --size=8M d.vhd
}

@test "names with spaces, newlines and leading dashes" {
	for n in 'a b.vhd' $'new\nline.vhd' ./-dash.vhd; do
		vhd-create --size=4M -- "$n"
		resized "$n" $((8 << 20))
	done
	vhd-resize --size=9M -- -dash.vhd
}

@test "no space: 73, and the disk is as it was" {
	model make d.vhd --size=1M --block=4K --fill=60:4K --zeros=0
	run small_fs 1M 'cp d.vhd small/ && sha256sum <small/d.vhd >s && dd if=/dev/zero of=small/fill bs=4096 2>/dev/null
		rm small/fill; dd if=/dev/zero of=small/fill bs=4096 count=$(($(df -k --output=avail small | tail -n 1) / 4 - 3)) 2>/dev/null
		vhd-resize --size=60M small/d.vhd; rc=$?
		vhd-info small/d.vhd >/dev/null
		sha256sum <small/d.vhd | cmp - s && [ ! -e small/d.vhd.rollback ] || rc=1; exit $rc'
	assert_status 73
}

@test "a grown disk of XenServer keeps its batmap right" {
	for m in 2 40 300; do
		model make d.vhd --size=2M --block=4K --creator=tap --fill=300:4K --raw=raw
		resized d.vhd $((m << 20))
		truncate -s "${m}M" raw
		is_raw d.vhd raw
		model write d.vhd --fill=300:4K --raw=raw --seed=4
		is_raw d.vhd raw
		sound d.vhd
		rm raw
	done
}

@test "killed at any write: old or new" {
	for k in grow table table-last table-child table-tap map-tap child-tap grow-fixed fixed511 shrink shrink-fixed shrink-tap; do
		faults changefaults kill $k --most=12
	done
}

@test "an error at any write: old or new, and the same command finishes" {
	for k in table grow-fixed shrink; do
		faults changefaults error $k --most=20
	done
}

@test "power lost at any moment: old or new" {
	for k in grow table table-last table-child table-tap map-tap child-tap grow-fixed shrink shrink-fixed; do
		faults changefaults power $k --most=12
	done
}
