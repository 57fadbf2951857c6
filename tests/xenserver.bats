# SPDX-License-Identifier: BSD-2-Clause
# Disks of XenServer (creator `tap`): batmap, hidden parents, raw parents, poison, encryption, locators.
load helper
load disks

setup() {
	workdir
}

# tap NAME [OPTION…]: a disk as XenServer makes it
tap() {
	local n=$1
	shift
	model make "$n" --creator=tap --locators=MacX,W2ku,W2ru --block=64K "$@"
}

# full FILE: how many blocks the batmap says are full
full() {
	"$python" - "$top/tests/model" "$1" <<-'END'
		import os, sys
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		e = vhdmodel.Editor(sys.argv[2])
		at, off, n = e.batmap()
		print(sum(bin(x).count('1') for x in os.pread(e.fd, n, off)))
	END
}

# edit FILE PYTHON: e is the model's editor of FILE, at and off are where the batmap's header and the map are
edit() {
	"$python" - "$top/tests/model" "$1" "$2" <<-'END'
		import os, struct, sys, textwrap
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		e = vhdmodel.Editor(sys.argv[2])
		at, off, n = e.batmap() or (0, 0, 0)
		exec(textwrap.dedent(sys.argv[3]))
	END
}

# refuses TEXT COMMAND…: with 65 and that text
refuses() {
	local text=$1
	shift
	run --separate-stderr limited "$@"
	assert_status 65
	[ -z "$output" ] || fail "standard output"
	[[ $stderr == *"$text"* ]] || fail "$stderr"
}

@test "a real empty disk of XAPI: shown, written, grown, sound" {
	corpus go-vhd/xapi.vhd
	chmod u+w xapi.vhd
	[ "$(vhd-info --json xapi.vhd | jq -r .files[0].creator)" = tap ]
	child=$(vhd-snap xapi.vhd)
	truncate -s 41943040 raw
	model write "$child" --fill=40:4K --raw=raw
	vhd-merge --delete "$child" >/dev/null
	is_raw xapi.vhd raw
	sound xapi.vhd
	vhd-resize -q --size=100M xapi.vhd
	truncate -s 100M raw
	is_raw xapi.vhd raw
	sound xapi.vhd
	vhd-resize -q --size=30G xapi.vhd
	sound xapi.vhd
}

@test "a merge into blocks that the batmap calls full, and into others" {
	tap base.vhd --size=2M --fill=40:16K --seq --zeros=0 --raw=raw
	[ "$(full base.vhd)" -gt 5 ]
	tap leaf.avhd --parent=base.vhd --fill=90:4K --raw=raw --seed=3
	vhd-merge --delete leaf.avhd >/dev/null
	is_raw base.vhd raw
	sound base.vhd
}

@test "guest writes through the server leave the batmap right" {
	need nbdkit
	"$python" -c 'import nbd' || skip "needs python3-libnbd"
	tap base.vhd --size=2M --fill=64:16K --seq --zeros=0 --raw=raw
	tap leaf.avhd --parent=base.vhd --fill=3:64K --zeros=0 --raw=raw --seed=3
	[ "$(full leaf.avhd)" -gt 0 ]
	cat >guest.py <<-'END'
		import nbd, sys
		h = nbd.NBD()
		h.connect_uri(sys.argv[1])
		for i in range(24):
		    h.pwrite(bytes([i + 1]) * 4096, i * 81920)
		h.zero(65536, 0)
		h.trim(65536, 131072)
		h.flush()
	END
	nbdkit -U - "$QSM_PLUGIN" file=leaf.avhd --run "$python guest.py \"\$uri\""
	sound leaf.avhd
	vhd-sum leaf.avhd
}

@test "space of the batmap is not taken for blocks" {
	tap base.vhd --size=64M --fill=1:4K
	edit base.vhd '
	end = vhdmodel.up(e.pos, 4096) + 8192
	os.ftruncate(e.fd, end)
	head = bytearray(os.pread(e.fd, 512, at))
	head[8:16] = struct.pack(">Q", end - 4096)
	os.pwrite(e.fd, bytes(512), end - 4096)
	os.pwrite(e.fd, head, at)
	os.pwrite(e.fd, e.foot.raw, end)
	m = os.pread(e.fd, 512, off)
	os.pwrite(e.fd, m, end - 4096)'
	sound base.vhd
	tap leaf.avhd --parent=base.vhd --fill=200:4K
	vhd-merge --delete leaf.avhd >/dev/null
	sound base.vhd
}

@test "a batmap that lies is not believed" {
	tap base.vhd --size=2M --fill=64:16K --seq --zeros=0 --raw=raw
	tap leaf.avhd --parent=base.vhd --fill=30:512 --raw=raw --seed=3
	edit leaf.avhd 'os.pwrite(e.fd, b"\xff" * n, off)'
	is_raw leaf.avhd raw
	cp raw grown
	vhd-resize -q --size=30M leaf.avhd
	truncate -s 30M grown
	# Its checksum was wrong, so nothing of it was taken over.
	[ "$(full leaf.avhd)" = 0 ]
	sound leaf.avhd
	[ "$(our_sha leaf.avhd)" = "$(sha grown)" ]
}

@test "a block that loses bits loses its mark" {
	tap base.vhd --size=100352 --fill=20:4K --raw=raw
	tap leaf.avhd --parent=base.vhd --fill=200:512 --seq --zeros=0 --raw=raw
	edit leaf.avhd 'os.pwrite(e.fd, b"\xff" * 16, e.bat[1] * 512); e.finish()'
	[ "$(full leaf.avhd)" = 2 ]
	vhd-resize -q --size=128K leaf.avhd
	truncate -s 128K raw
	is_raw leaf.avhd raw
	[ "$(full leaf.avhd)" = 1 ]
	sound leaf.avhd
}

@test "the batmap of version 1.1 has signed sums, and keeps them" {
	tap base.vhd --size=2M --fill=64:16K --seq --zeros=0 --raw=raw
	edit base.vhd '
	m = os.pread(e.fd, n, off)
	s = ~sum(x - 256 * (x > 127) for x in m) & 0xffffffff
	os.pwrite(e.fd, struct.pack(">II", 0x10001, s), at + 20)'
	before=$(full base.vhd)
	vhd-resize -q --size=300M base.vhd
	[ "$(full base.vhd)" = "$before" ]
	edit base.vhd '
	m = os.pread(e.fd, n, off)
	assert struct.unpack(">II", os.pread(e.fd, 8, at + 20)) == (0x10001, ~sum(x - 256 * (x > 127) for x in m) & 0xffffffff)'
}

@test "a hidden disk: shown as such, a good parent, and hidden it stays" {
	tap base.vhd --size=2M --fill=40:4K --raw=raw --hidden=1
	tap leaf.avhd --parent=base.vhd --fill=40:512 --raw=raw --seed=2
	[ "$(vhd-info --json base.vhd | jq .files[0].hidden)" = true ]
	is_raw leaf.avhd raw
	mv base.vhd moved.vhd
	vhd-reparent -q --parent=moved.vhd leaf.avhd >/dev/null
	vhd-merge --delete leaf.avhd >/dev/null
	is_raw moved.vhd raw
	vhd-resize -q --size=3M moved.vhd
	[ "$(field moved.vhd foot.hidden)" = 1 ]
	sound moved.vhd
}

@test "hidden by a version that did not refresh the checksum" {
	tap base.vhd --size=2M --fill=40:4K --raw=raw
	model poke base.vhd foot.creator_version=0x10001
	model poke --keep-sums base.vhd foot.hidden=1
	run --separate-stderr vhd-info --json base.vhd
	assert_status 0
	[ "$(json '.files[0] | [.hidden, .warning] | map(tostring) | join(" ")')" = "true null" ]
	vhd-resize -q --size=3M base.vhd
	sound base.vhd
	# The same of another maker is damage.
	model make other.vhd --size=2M
	model poke --keep-sums other.vhd foot.hidden=1
	run --separate-stderr vhd-resize --size=3M other.vhd
	assert_status 65
}

@test "a raw parent is found by name and size, however the path is written" {
	head -c 2M /dev/urandom >base.img
	cp base.img raw
	for l in MacX W2ku W2ru MacX,W2ku,W2ru; do
		tap leaf.avhd --parent=base.img --raw-parent --size=2M --locators=$l --fill=40:512 --raw=raw
		is_raw leaf.avhd raw
	done
	vhd-merge --delete leaf.avhd >/dev/null
	cmp base.img raw
}

@test "an absolute locator that holds a relative path leads to the parent" {
	mkdir sub
	tap base.vhd --size=2M --fill=40:4K --raw=raw
	(cd sub && tap leaf.avhd --parent=../base.vhd --text='..\base.vhd' --locators=W2ku --absolute='.\..\' \
		--fill=40:512 --raw=../raw)
	[ "$(field sub/leaf.avhd loc.0.text)" = '.\..\base.vhd' ]
	refuses --parent-dir= vhd-sum sub/leaf.avhd
	[ "$(our_sha --parent-dir=. sub/leaf.avhd)" = "$(sha raw)" ]
}

@test "XenServer's own path is kept up to date" {
	tap base.vhd --size=2M --fill=40:4K --raw=raw
	tap leaf.avhd --parent=base.vhd --fill=40:512 --raw=raw
	mkdir sub
	mv base.vhd sub/new.vhd
	vhd-reparent -q --parent=sub/new.vhd leaf.avhd >/dev/null
	[ "$(field leaf.avhd loc.0.text)" = file://./sub/new.vhd ]
	sound leaf.avhd
}

@test "v_poison: refused by everybody, with the reason" {
	tap base.vhd --size=2M --fill=40:4K
	tap leaf.avhd --parent=base.vhd --fill=9:512
	for which in front end both; do
		cp base.vhd good
		model poke --which=$which base.vhd foot.cookie=v_poison
		refuses revert vhd-info base.vhd
		refuses revert vhd-sum base.vhd
		refuses revert vhd-resize --size=3M base.vhd
		refuses revert vhd-snap base.vhd
		refuses revert vhd-sum leaf.avhd
		refuses revert vhd-reparent --parent=base.vhd leaf.avhd
		mv good base.vhd
	done
}

@test "an encrypted disk is refused" {
	tap base.vhd --size=2M --fill=40:4K
	edit base.vhd 'os.pwrite(e.fd, b"\1", at + 29)'
	refuses encrypted vhd-sum base.vhd
	refuses encrypted vhd-resize --size=3M base.vhd
}

@test "bitmaps of version 0.1 are refused" {
	tap base.vhd --size=2M --fill=40:4K
	model poke base.vhd foot.creator_version=1
	refuses "bit order" vhd-sum base.vhd
}

@test "a footer of 511 bytes" {
	tap base.vhd --size=2M --fill=40:4K --foot511 --raw=raw
	tap leaf.avhd --parent=base.vhd --fill=9:512 --raw=raw
	is_raw leaf.avhd raw
	vhd-merge --delete leaf.avhd >/dev/null
	is_raw base.vhd raw
	sound base.vhd
}

@test "a copy of a disk in use has no footer at its end, and is sound otherwise" {
	tap base.vhd --size=2M --fill=40:4K --raw=raw
	edit base.vhd 'os.pwrite(e.fd, b"\xc7" * 512, e.end_at)'
	run --separate-stderr vhd-sum base.vhd
	assert_status 0
	[[ $stderr == *"front copy"* ]]
	vhd-resize -q --size=3M base.vhd
	truncate -s 3M raw
	is_raw base.vhd raw
	sound base.vhd
}

@test "room to grow in the table is used, and the batmap grows" {
	tap base.vhd --size=2M --entries=9000 --fill=40:4K --raw=raw
	at=$(field base.vhd head.table_offset)
	vhd-resize -q --size=550M base.vhd
	[ "$(field base.vhd head.table_offset) $(field base.vhd head.entries)" = "$at 9000" ]
	truncate -s 550M raw
	is_raw base.vhd raw
	sound base.vhd
	tap leaf.avhd --parent=base.vhd --fill=90:4K --raw=raw
	vhd-merge --delete leaf.avhd >/dev/null
	is_raw base.vhd raw
	sound base.vhd
}
