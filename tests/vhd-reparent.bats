# SPDX-License-Identifier: BSD-2-Clause
# vhd-reparent: the link of a child to its parent; the right parent only, and old or new whatever happens.
load helper
load disks

setup() {
	workdir
	model make base.vhd --size=4M --block=64K --fill=20:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --block=64K --fill=30:512 --raw=leaf.raw --seed=2
	sum=$(vhd-sum leaf.avhd | cut -d' ' -f1)
}

teardown() {
	[ -z "${fast-}" ] || rm -rf "$fast"
}

# linked TO [OPTION…]: leaf.avhd is linked to TO, reads as before, and is sound
linked() {
	local to=$1
	shift
	run --separate-stderr vhd-reparent --parent="$to" "$@" leaf.avhd
	assert_status 0
	[ "$output" = "leaf.avhd: linked to $to" ] || fail "what it says"
	[ "$(vhd-sum --parent-dir=. leaf.avhd | cut -d' ' -f1)" = "$sum" ] || fail "another content"
	sound leaf.avhd
	[ ! -e leaf.avhd.rollback ]
}

# refuses STATUS TEXT COMMAND…
refuses() {
	local want=$1 text=$2
	shift 2
	unchanged leaf.avhd base.vhd -- limited "$@"
	assert_status "$want"
	[ -z "$output" ] || fail "standard output"
	[[ $stderr == *"$text"* ]] || fail "$stderr"
}

text_of() {
	local i
	for i in 0 1 2 3 4 5 6 7; do
		[ "$(field leaf.avhd loc.$i.code)" != "b'$1'" ] || field leaf.avhd loc.$i.text
	done
}

@test "a parent that has another name" {
	mv base.vhd new.vhd
	run vhd-sum leaf.avhd
	assert_status 66
	linked new.vhd
	[ "$(text_of W2ru)" = '.\new.vhd' ]
	[ "$(text_of W2ku)" = "$(realpath new.vhd | tr / '\\')" ]
	[ "$(field leaf.avhd name)" = new.vhd ]
	vhd-sum leaf.avhd
}

@test "the time of the parent's last change is recorded" {
	mv base.vhd new.vhd
	touch -d '2020-01-01 00:00:00 UTC' new.vhd
	linked new.vhd
	[ "$(field leaf.avhd head.ptime)" = $((1577836800 - 946684800)) ]
}

@test "a parent in another folder: the relative path leads there, and the option for readers is told" {
	mkdir -p a/b
	mv base.vhd a/b/
	linked a/b/base.vhd
	[ "$(text_of W2ru)" = '.\a\b\base.vhd' ]
	[[ $stderr == *"--parent-dir=$PWD/a/b"* ]]
	mkdir c
	mv leaf.avhd c/
	cd c
	run --separate-stderr vhd-reparent --parent=../a/b/base.vhd leaf.avhd
	assert_status 0
	[ "$(text_of W2ru)" = '..\a\b\base.vhd' ]
	vhd-sum --parent-dir=../a leaf.avhd
}

@test "names with spaces, quotes, newlines, backslashes, a leading dash and other scripts" {
	for n in 'a b.vhd' "it's \"x\".vhd" $'new\nline.vhd' -dash.vhd 'Größe 盘 💾.vhd'; do
		mv -- *base.vhd "$n" 2>/dev/null || mv -- "$last" "$n"
		last=./$n
		run --separate-stderr vhd-reparent --parent="$n" -- leaf.avhd
		assert_status 0
		[ "$(text_of W2ru)" = ".\\$n" ] || fail "$n: $(text_of W2ru)"
		vhd-sum leaf.avhd
		sound leaf.avhd
	done
	mv leaf.avhd ./-leaf.avhd
	vhd-reparent --parent="$n" -- -leaf.avhd
}

@test "a name that is not UTF-8 cannot be recorded" {
	cp base.vhd $'\xff.vhd'
	refuses 65 UTF-8 vhd-reparent --parent=$'\xff.vhd' leaf.avhd
}

@test "names that need more space get new space, with data behind and without" {
	long=$(printf 'n%.0s' {1..240})
	mkdir -p "$long/$long"
	mv base.vhd "$long/$long/"
	linked "$long/$long/base.vhd"
	[ "$(field leaf.avhd loc.0.space)" = 1024 ] || [ "$(field leaf.avhd loc.1.space)" = 1024 ]
	# Short again: the space is used, not more of it.
	size=$(stat -c %s leaf.avhd)
	mv "$long/$long/base.vhd" .
	linked base.vhd
	[ "$(stat -c %s leaf.avhd)" = "$size" ]
	sound leaf.avhd
	# What is allocated afterwards lies behind.
	model write leaf.avhd --fill=40:4K --raw=leaf.raw --seed=7
	sound leaf.avhd
	is_raw leaf.avhd leaf.raw
}

@test "an absolute path that others left is replaced, an unused slot is taken" {
	model make leaf.avhd --parent=base.vhd --block=64K --locators=W2ru --fill=9:512
	sum=$(vhd-sum leaf.avhd | cut -d' ' -f1)
	mv base.vhd new.vhd
	linked new.vhd
	[ "$(text_of W2ku)" = "$(realpath new.vhd | tr / '\\')" ]
}

@test "names in encodings of the past are dropped, unknown ones are kept" {
	model make leaf.avhd --parent=base.vhd --block=64K --locators=Wi2k,W2ku,W2ru,Wi2r,MacX --fill=9:512
	sum=$(vhd-sum leaf.avhd | cut -d' ' -f1)
	model poke leaf.avhd loc.4.code=Abcd
	mv base.vhd new.vhd
	linked new.vhd
	codes=$(for i in 0 1 2 3 4 5 6 7; do field leaf.avhd loc.$i.code; done | tr -d '\n')
	[[ $codes == *W2ku*W2ru*Abcd* ]] && [[ $codes != *Wi2* ]] || fail "$codes"
	[[ $(field leaf.avhd loc.4.text) == *base.vhd ]]
}

@test "bytes that we do not know survive" {
	model poke leaf.avhd foot.reserved=hex:41424344 head.reserved2=hex:45464748 head.reserved1=7
	mv base.vhd new.vhd
	linked new.vhd
	[[ $(field leaf.avhd foot.reserved) == "b'ABCD"* ]]
	[[ $(field leaf.avhd head.reserved2) == "b'EFGH"* ]]
	[ "$(field leaf.avhd head.reserved1)" = 7 ]
}

@test "a link that is right already: nothing is written" {
	linked base.vhd
	unchanged leaf.avhd base.vhd -- vhd-reparent --parent=base.vhd leaf.avhd
	assert_status 0
	assert_output_has "already linked"
}

@test "another parent is refused; with --force its UUID is taken over, and that is said" {
	vhd-convert -q --type=dynamic base.vhd copy.vhd
	refuses 65 --force vhd-reparent --parent=copy.vhd leaf.avhd
	[[ $stderr == *UUID* ]]
	run --separate-stderr vhd-reparent --force --parent=copy.vhd leaf.avhd
	assert_status 0
	[[ $stderr == *UUID* ]]
	[ "$(field leaf.avhd head.puid)" = "$(field copy.vhd foot.uid)" ]
	rm base.vhd
	is_raw leaf.avhd leaf.raw
}

@test "a parent of another size is refused without --force" {
	model make big.vhd --size=8M --uuid="$(field base.vhd foot.uid)"
	refuses 65 bytes vhd-reparent --parent=big.vhd leaf.avhd
	run --separate-stderr vhd-reparent --force --parent=big.vhd leaf.avhd
	assert_status 0
}

@test "a smaller parent is right for a child that has grown" {
	model make leaf.avhd --parent=base.vhd --size=6M --block=64K --fill=9:512
	sum=$(vhd-sum leaf.avhd | cut -d' ' -f1)
	mv base.vhd new.vhd
	linked new.vhd
}

@test "a larger parent is right for a child that has shrunk" {
	model make base.vhd --size=8M --block=64K
	model make leaf.avhd --parent=base.vhd --block=64K --fill=9:512 --seq
	vhd-resize -q --size=1M leaf.avhd
	mv base.vhd new.vhd
	vhd-reparent --parent=new.vhd leaf.avhd
	vhd-sum leaf.avhd
}

@test "raw parents: only the size tells" {
	truncate -s 4M disk.img
	model make leaf.avhd --parent=disk.img --raw-parent --size=4M --fill=9:512 --raw=leaf.raw
	sum=$(vhd-sum leaf.avhd | cut -d' ' -f1)
	mv disk.img moved.img
	linked moved.img
	truncate -s 4194816 moved.img
	for f in "" --force; do
		# shellcheck disable=SC2086
		refuses 65 bytes vhd-reparent $f --parent=moved.img leaf.avhd
	done
	refuses 65 raw vhd-reparent --parent=base.vhd leaf.avhd
	model make leaf.avhd --parent=base.vhd --fill=9:512
	truncate -s 4194304 moved.img
	refuses 65 raw vhd-reparent --parent=moved.img leaf.avhd
	vhd-reparent --force --parent=moved.img leaf.avhd
	[ "$(field leaf.avhd head.puid)" = 00000000000000000000000000000000 ]
	vhd-sum leaf.avhd
}

@test "a VHD whose UUID is all zeros cannot be told from a raw parent" {
	model poke base.vhd foot.uid=hex:00000000000000000000000000000000
	refuses 65 zeros vhd-reparent --force --parent=base.vhd leaf.avhd
}

@test "loops: the child itself, a disk that stands on it, a copy of it, by any name" {
	model make top.avhd --parent=leaf.avhd --fill=3:512
	model make third.avhd --parent=top.avhd --fill=3:512
	ln -s leaf.avhd link
	ln leaf.avhd hard
	cp leaf.avhd copy
	for p in leaf.avhd top.avhd third.avhd link hard copy ./././leaf.avhd; do
		refuses 65 loop vhd-reparent --force --parent=$p leaf.avhd
	done
}

@test "a chain may be 256 disks, not more" {
	cp base.vhd c0.vhd
	for i in $(seq 255); do
		echo "c$((i - 1)).vhd c$i.vhd"
	done | while read -r a b; do
		vhd-snap -q --output="$b" "$a" >/dev/null
	done
	refuses 65 256 vhd-reparent --force --parent=c255.vhd leaf.avhd
	vhd-reparent --force --parent=c254.vhd leaf.avhd
}

@test "the parent's own parents must be there: chains are mended from the base up" {
	model make top.avhd --parent=leaf.avhd --fill=3:512 --block=64K
	mkdir new
	mv base.vhd new/root.vhd
	mv leaf.avhd new/middle.avhd
	run --separate-stderr vhd-reparent --parent=new/middle.avhd top.avhd
	assert_status 66
	vhd-reparent --parent=new/root.vhd new/middle.avhd
	vhd-reparent --parent=new/middle.avhd top.avhd
	vhd-sum --parent-dir=new top.avhd
}

@test "only a differencing disk has a parent" {
	refuses 65 differencing vhd-reparent --force --parent=leaf.avhd base.vhd
	vhd-create --size=4M --type=fixed f.vhd
	refuses 65 differencing vhd-reparent --force --parent=base.vhd f.vhd
}

@test "a parent that is no disk, a FIFO, a folder, or not there" {
	mkfifo fifo
	mkdir dir
	head -c 5000 /dev/urandom >junk
	refuses 65 '' vhd-reparent --parent=fifo leaf.avhd
	refuses 65 '' vhd-reparent --parent=dir leaf.avhd
	refuses 65 '' vhd-reparent --parent=junk leaf.avhd
	refuses 65 '' vhd-reparent --parent=/dev/null leaf.avhd
	refuses 66 gone vhd-reparent --parent=gone leaf.avhd
	refuses 66 gone vhd-reparent --parent=base.vhd gone
}

@test "locators that lie over something else get new space" {
	b=$(field leaf.avhd used | head -n 1)
	model poke leaf.avhd loc.1.offset="$(field leaf.avhd data."$b")" loc.0.offset=512
	mv base.vhd new.vhd
	run --separate-stderr vhd-reparent --parent=new.vhd leaf.avhd
	assert_status 0
	is_raw leaf.avhd leaf.raw
	sound leaf.avhd
}

@test "--dry-run checks, and changes nothing" {
	mv base.vhd new.vhd
	unchanged leaf.avhd new.vhd -- vhd-reparent -n --parent=new.vhd leaf.avhd
	assert_status 0
	assert_output_has "would be linked"
}

@test "--json" {
	vhd-convert -q --type=dynamic base.vhd copy.vhd
	run --separate-stderr vhd-reparent --json -f --parent=copy.vhd leaf.avhd
	assert_status 0
	[ "$(json '[.version, .file, .parent, .forced, .changed, .dry_run] | map(tostring) | join(" ")')" = \
		"1 leaf.avhd copy.vhd true true false" ]
	json '.parent_uuid != .old_parent_uuid'
}

@test "a child or a parent in use is 75" {
	mv base.vhd new.vhd
	for m in read write; do
		hold leaf.avhd $m
		run --separate-stderr vhd-reparent --parent=new.vhd leaf.avhd
		assert_status 75
		release
	done
	hold new.vhd write
	run --separate-stderr vhd-reparent --parent=new.vhd leaf.avhd
	assert_status 75
	release
}

@test "wrong usage" {
	refuses 64 parent vhd-reparent leaf.avhd
	refuses 64 CHILD vhd-reparent --parent=base.vhd
	refuses 64 CHILD vhd-reparent --parent=base.vhd leaf.avhd leaf.avhd
}

@test "no space: 73, and the disk is as it was" {
	long=$(printf 'n%.0s' {1..240})
	mkdir -p small "$long"
	cp base.vhd "$long/"
	run small_fs 3M 'cp leaf.avhd small/ && sha256sum <small/leaf.avhd >s && dd if=/dev/zero of=small/fill bs=4096 2>/dev/null
		vhd-reparent --parent="$PWD/'"$long"'/base.vhd" small/leaf.avhd; rc=$?
		sha256sum <small/leaf.avhd | cmp - s && [ ! -e small/leaf.avhd.rollback ] || rc=1; exit $rc'
	assert_status 73
}

@test "killed at any write: old or new" {
	for k in link space macx; do
		faults changefaults kill $k --most=30
	done
}

@test "an error at any write: as it was" {
	for k in link space; do
		faults changefaults error $k --most=30
	done
}

@test "power lost at any moment: old or new" {
	for k in link space macx; do
		faults changefaults power $k --most=30
	done
}
