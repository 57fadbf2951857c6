# SPDX-License-Identifier: BSD-2-Clause
# vhd-merge in chains: several layers at once, a layer in the middle, into a new file, and what stands in the way.
load helper
load disks

setup() {
	workdir
}

# base.vhd < mid.avhd < leaf.avhd, read as base.raw, mid.raw, leaf.raw. Options of base, mid, leaf.
three() {
	# shellcheck disable=SC2086
	model make base.vhd --size=8M --fill=20:4K --raw=leaf.raw ${1-}
	cp leaf.raw base.raw
	# shellcheck disable=SC2086
	model make mid.avhd --parent=base.vhd --fill=40:512 --raw=leaf.raw --seed=2 ${2-}
	cp leaf.raw mid.raw
	# shellcheck disable=SC2086
	model make leaf.avhd --parent=mid.avhd --fill=40:512 --raw=leaf.raw --seed=3 ${3-}
	model write leaf.avhd --fill=3:64K --raw=leaf.raw --seed=4
}

# refuses STATUS FILE… -- COMMAND…: so, and neither the files nor their folder have changed
refuses() {
	local want=$1
	shift
	unchanged "$@"
	assert_status "$want"
	[ -z "$output" ] || fail "standard output"
	[ -n "$stderr" ] || fail "no message"
}

@test "--to folds all layers above into the ancestor" {
	three
	run --separate-stderr vhd-merge --to=base.vhd leaf.avhd
	assert_status 0
	[ "$(realpath "$output")" = "$(realpath base.vhd)" ]
	is_raw base.vhd leaf.raw
	is_raw leaf.avhd leaf.raw
	sound base.vhd
}

@test "--to the parent is the same as without" {
	three
	run --separate-stderr vhd-merge --to=mid.avhd leaf.avhd
	assert_status 0
	is_raw mid.avhd leaf.raw
	is_raw base.vhd base.raw
}

@test "--to the middle of a chain leaves what is below alone" {
	three
	model make top.avhd --parent=leaf.avhd --fill=20:4K --raw=leaf.raw --seed=9
	before=$(sha base.vhd)
	run --separate-stderr vhd-merge --to=mid.avhd top.avhd
	assert_status 0
	is_raw mid.avhd leaf.raw
	[ "$(sha base.vhd)" = "$before" ]
}

@test "after --to a layer between opens only below the leaf, and says so" {
	three
	vhd-merge -q --to=base.vhd leaf.avhd
	refused 65 vhd-sum mid.avhd
	[[ $stderr == *leaf.avhd* ]]
	vhd-sum leaf.avhd
}

@test "--to with --delete leaves the ancestor alone" {
	three
	run --separate-stderr vhd-merge --to=base.vhd --delete leaf.avhd
	assert_status 0
	is_raw base.vhd leaf.raw
	[ "$(ls -A)" = "$(printf '%s\n' base.raw base.vhd leaf.raw mid.raw)" ] || fail "$(ls -A)"
}

@test "--to something that is no ancestor" {
	three
	model make other.vhd --size=8M
	refuses 65 base.vhd mid.avhd leaf.avhd -- vhd-merge --to=other.vhd leaf.avhd
	[[ $stderr == *other.vhd*"not an ancestor"* ]]
	refuses 65 base.vhd mid.avhd leaf.avhd -- vhd-merge --to=leaf.avhd leaf.avhd
	refuses 66 base.vhd mid.avhd leaf.avhd -- vhd-merge --to=missing.vhd leaf.avhd
}

@test "layers of differing block sizes" {
	three --block=32K --block=256K --block=4K
	vhd-merge -q --to=base.vhd --delete leaf.avhd
	is_raw base.vhd leaf.raw
	sound base.vhd
}

@test "into a fixed and into a raw base" {
	three --kind=fixed
	vhd-merge -q --to=base.vhd --delete leaf.avhd
	is_raw base.vhd leaf.raw
	rm -f ./*
	head -c 4M /dev/urandom >base.img
	cp base.img leaf.raw
	model make mid.avhd --parent=base.img --raw-parent --fill=60:512 --raw=leaf.raw
	model make leaf.avhd --parent=mid.avhd --fill=60:512 --raw=leaf.raw --seed=8
	vhd-merge -q --to=base.img --delete leaf.avhd
	cmp base.img leaf.raw
}

@test "what an upper layer wrote wins over the layers below" {
	three --zeros=0 "--fill=300:4K --zeros=0" "--fill=300:4K --zeros=1"
	vhd-merge -q --to=base.vhd leaf.avhd
	is_raw base.vhd leaf.raw
}

@test "a chain of forty" {
	model make 0.vhd --size=4M --fill=20:4K --raw=raw
	for i in $(seq 1 40); do
		model make "$i.vhd" --parent="$((i - 1)).vhd" --fill=3:512 --raw=raw --seed="$i" --block=64K
	done
	run --separate-stderr vhd-merge --to=0.vhd --delete --json 40.vhd
	assert_status 0
	json '.layers == 40'
	is_raw 0.vhd raw
	[ "$(ls -A)" = "$(printf '%s\n' 0.vhd raw)" ]
}

@test "one layer at a time is the same as all at once" {
	three
	mkdir once && cp base.vhd mid.avhd leaf.avhd once
	vhd-merge -q --delete leaf.avhd
	vhd-merge -q --delete mid.avhd
	vhd-merge -q --delete --to=once/base.vhd once/leaf.avhd
	[ "$(our_sha base.vhd)" = "$(our_sha once/base.vhd)" ]
	is_raw base.vhd leaf.raw
}

@test "a layer in the middle: its child still reads the same" {
	three
	vhd-merge -q mid.avhd
	is_raw base.vhd mid.raw
	is_raw leaf.avhd leaf.raw
}

@test "a layer in the middle with --delete: its child gets the parent" {
	three
	run --separate-stderr vhd-merge --delete --json mid.avhd
	assert_status 0
	json '.reparented == 1'
	[ ! -e mid.avhd ]
	is_raw leaf.avhd leaf.raw
	[ "$(field leaf.avhd head.puid)" = "$(field base.vhd foot.uid)" ]
}

@test "all children of a layer that goes get the parent, also with odd names" {
	three
	cp leaf.raw second.raw
	model make $'se"c \n\xc3\xa9.avhd' --parent=mid.avhd --fill=10:4K --raw=mid.raw --seed=12
	vhd-merge -q --delete mid.avhd
	is_raw leaf.avhd leaf.raw
	is_raw $'se"c \n\xc3\xa9.avhd' mid.raw
}

@test "a child of a layer that goes is in use: nothing is begun" {
	three
	hold leaf.avhd write
	refuses 75 base.vhd mid.avhd leaf.avhd -- vhd-merge --delete mid.avhd
	[[ $stderr == *leaf.avhd* ]]
	release
	vhd-merge -q --delete mid.avhd
}

@test "another child of the parent is named, and nothing is begun" {
	three
	model make other.avhd --parent=base.vhd --seed=7 --fill=3:4K
	refuses 78 base.vhd mid.avhd other.avhd -- vhd-merge mid.avhd
	[[ $stderr == *other.avhd*"is a child of"*base.vhd* ]]
	refuses 78 base.vhd mid.avhd other.avhd -- vhd-merge --dry-run mid.avhd
	rm other.avhd
	vhd-merge -q mid.avhd
}

@test "another child of a layer between is named" {
	three
	model make other.avhd --parent=mid.avhd --seed=7 --fill=3:4K
	refuses 78 base.vhd mid.avhd other.avhd leaf.avhd -- vhd-merge --to=base.vhd leaf.avhd
	[[ $stderr == *other.avhd*"is a child of"*mid.avhd* ]]
}

@test "another child in a --parent-dir, or in the leaf's folder" {
	mkdir bases kids more
	model make bases/base.vhd --size=4M --fill=20:4K --raw=leaf.raw
	model make kids/leaf.avhd --parent=bases/base.vhd --fill=9:4K --raw=leaf.raw
	model make more/other.avhd --parent=bases/base.vhd --fill=9:4K --seed=3
	refuses 78 bases/base.vhd kids/leaf.avhd -- vhd-merge --parent-dir=bases --parent-dir=more kids/leaf.avhd
	mv more/other.avhd kids
	refuses 78 bases/base.vhd kids/leaf.avhd -- vhd-merge --parent-dir=bases kids/leaf.avhd
	rm kids/other.avhd
	vhd-merge -q --parent-dir=bases --parent-dir=more kids/leaf.avhd
	is_raw bases/base.vhd leaf.raw
}

@test "where a folder cannot be read, nobody knows of another child, and nothing is begun" {
	needs_root
	mkdir more
	model make base.vhd --size=8M --fill=9:4K
	vhd-snap -q --output=leaf.avhd base.vhd
	vhd-snap -q --output=more/other.avhd base.vhd
	cp base.vhd before
	chmod 666 base.vhd leaf.avhd
	chmod 777 .
	chmod 711 more
	local d
	for d in "$BATS_RUN_TMPDIR" "${BATS_TEST_TMPDIR%/*}" "$BATS_TEST_TMPDIR"; do
		chmod a+x "$d"
	done
	run --separate-stderr setpriv --reuid=65534 --regid=65534 --clear-groups \
		vhd-merge --parent-dir=more leaf.avhd
	[[ $stderr != *setpriv* ]] || skip "cannot be somebody else here"
	assert_status 77
	[[ $stderr == *"more: cannot be read"*"another child"* ]] || fail "$stderr"
	cmp base.vhd before
}

@test "another child of a raw parent is known by the name" {
	head -c 1M /dev/urandom >base.img
	model make leaf.avhd --parent=base.img --raw-parent --fill=9:4K
	model make other.avhd --parent=base.img --raw-parent --fill=9:4K --seed=4
	refuses 78 base.img leaf.avhd -- vhd-merge leaf.avhd
	[[ $stderr == *other.avhd* ]]
}

@test "every reason is named in one go" {
	three "" --saved=1
	model make other.avhd --parent=base.vhd --seed=7
	model make third.avhd --parent=base.vhd --seed=8
	hold mid.avhd read
	refuses 75 base.vhd mid.avhd other.avhd -- vhd-merge mid.avhd
	release
	for word in locked other.avhd third.avhd --force; do
		[[ $stderr == *"$word"* ]] || fail "no word of $word: $stderr"
	done
}

@test "--output makes a disk of its own out of the chain" {
	three
	unchanged base.vhd mid.avhd leaf.avhd -- true
	before=$(sha base.vhd mid.avhd leaf.avhd)
	run --separate-stderr vhd-merge --output=new.vhd leaf.avhd
	assert_status 0
	[ "$output" = new.vhd ]
	[ "$(sha base.vhd mid.avhd leaf.avhd)" = "$before" ]
	is_raw new.vhd leaf.raw
	[ "$(field new.vhd foot.type)" = 3 ]
	sound --strict new.vhd
	[ "$(field new.vhd foot.uid)" != "$(field leaf.avhd foot.uid)" ]
}

@test "--output with --to makes a child of what is below" {
	three
	run --separate-stderr vhd-merge --to=mid.avhd --output=new.avhd leaf.avhd
	assert_status 0
	is_raw new.avhd leaf.raw
	[ "$(field new.avhd foot.type)" = 4 ]
	[ "$(field new.avhd head.puid)" = "$(field base.vhd foot.uid)" ]
	is_raw mid.avhd mid.raw
}

@test "--output of a chain on a raw base is a dynamic disk" {
	head -c 4M /dev/urandom >base.img
	cp base.img leaf.raw
	model make leaf.avhd --parent=base.img --raw-parent --fill=60:512 --raw=leaf.raw
	vhd-merge -q -o new.vhd leaf.avhd
	is_raw new.vhd leaf.raw
}

@test "zero blocks take no space in --output" {
	vhd-create -q --size=64M base.vhd
	child=$(vhd-snap -q base.vhd)
	vhd-merge -q --output=new.vhd "$child"
	[ "$(stat -c %s new.vhd)" -lt 100000 ]
}

@test "--output never replaces a file without --force, nor a part of the chain" {
	three
	echo keep >new.vhd
	refuses 73 base.vhd mid.avhd leaf.avhd new.vhd -- vhd-merge --output=new.vhd leaf.avhd
	refuses 64 base.vhd mid.avhd leaf.avhd -- vhd-merge --force --output=base.vhd leaf.avhd
	run --separate-stderr vhd-merge --force --output=new.vhd leaf.avhd
	assert_status 0
	is_raw new.vhd leaf.raw
}

@test "--output goes neither with --delete nor with --dry-run" {
	three
	refuses 64 base.vhd mid.avhd leaf.avhd -- vhd-merge --output=new.vhd --delete leaf.avhd
	refuses 64 base.vhd mid.avhd leaf.avhd -- vhd-merge --output=new.vhd --dry-run leaf.avhd
}

@test "--dry-run of --to says what would be done, and changes nothing" {
	three
	unchanged base.vhd mid.avhd leaf.avhd -- vhd-merge --dry-run --json --to=base.vhd --delete leaf.avhd
	assert_status 0
	json '.dry_run and (.deleted | not) and .layers == 2 and .bytes > 0'
}

# killed CALL N: the merge of all layers with --delete dies there; the same command finishes it.
killed() {
	rm -f ./*
	three
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace="$1" \
		-e inject="$1:signal=KILL:when=$2" vhd-merge -q --to=base.vhd --delete leaf.avhd
	assert_status 137
	run --separate-stderr vhd-merge --to=base.vhd --delete leaf.avhd
	assert_status 0
	is_raw base.vhd leaf.raw
	rm trace
	# A file that had no name yet when it was killed cannot be known by the next run.
	find . -name '.*.tmp' -delete
	[ "$(ls -A)" = "$(printf '%s\n' base.raw base.vhd leaf.raw mid.raw)" ] || fail "$(ls -A)"
}

@test "killed while it deletes: the same command finishes it" {
	need strace
	for n in 1 2 3 4; do
		killed unlink "$n"
	done
}

@test "killed while children get their new parent: the same command finishes it" {
	need strace
	three
	mkdir before && cp base.vhd mid.avhd leaf.avhd before
	total=$(strace -f -qq -e trace=pwrite64 vhd-merge -q --delete mid.avhd 2>&1 | grep -c pwrite64)
	for n in $(seq $((total - 6)) "$total"); do
		cp before/* .
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64 \
			-e inject=pwrite64:signal=KILL:when="$n" vhd-merge -q --delete mid.avhd
		assert_status 137
		is_raw leaf.avhd leaf.raw
		vhd-merge -q --delete mid.avhd
		is_raw leaf.avhd leaf.raw
		is_raw base.vhd mid.raw
		[ ! -e mid.avhd ]
	done
}

@test "a stranger's marker deletes nothing" {
	three
	cp leaf.avhd keep.avhd
	model make base2.vhd --size=8M
	printf 'qsm-merge 1\nchild-uuid %032d\nleaf-uuid %032d\nstate merged\nleaf %s' 0 0 "$PWD/leaf.avhd" \
		>base2.vhd.merging
	rm mid.avhd
	run --separate-stderr vhd-merge --delete leaf.avhd
	[ "$status" -ne 0 ]
	cmp leaf.avhd keep.avhd
}

# grown OPTIONS-OF-BASE: base.vhd of 8 MiB below leaf.avhd, which has become larger and has data there
grown() {
	# shellcheck disable=SC2086
	model make base.vhd --size=8M --fill=20:4K --raw=leaf.raw $1
	model make leaf.avhd --parent=base.vhd --fill=20:4K --raw=leaf.raw --seed=2
	vhd-resize -q --size=13M leaf.avhd
	truncate -s 13M leaf.raw
	model write leaf.avhd --fill=30:4K --raw=leaf.raw --seed=3
	is_raw leaf.avhd leaf.raw
}

@test "a child that has grown makes its parent grow" {
	grown ""
	run --separate-stderr vhd-merge --delete leaf.avhd
	assert_status 0
	is_raw base.vhd leaf.raw
	sound base.vhd
	[ "$(vhd-info --json base.vhd | jq '.files[0].size')" -eq $((13 << 20)) ]
}

@test "a parent grows beyond the room of its table" {
	grown --block=64K
	vhd-merge -q --delete leaf.avhd
	is_raw base.vhd leaf.raw
	sound base.vhd
	vhd-check -q base.vhd
}

@test "a fixed parent grows" {
	grown --kind=fixed
	vhd-merge -q --delete leaf.avhd
	is_raw base.vhd leaf.raw
	[ "$(stat -c %s base.vhd)" -eq $(((13 << 20) + 512)) ]
}

@test "a raw parent grows" {
	head -c 8M /dev/urandom >base.img
	cp base.img leaf.raw
	model make leaf.avhd --parent=base.img --raw-parent --fill=20:4K --raw=leaf.raw
	vhd-resize -q --size=13M leaf.avhd
	truncate -s 13M leaf.raw
	model write leaf.avhd --fill=30:4K --raw=leaf.raw --seed=3
	vhd-merge -q --delete leaf.avhd
	cmp base.img leaf.raw
}

@test "layers that have grown one after the other" {
	grown ""
	child=$(vhd-snap -q leaf.avhd)
	vhd-resize -q --size=20M "$child"
	truncate -s 20M leaf.raw
	model write "$child" --fill=30:4K --raw=leaf.raw --seed=4
	vhd-merge -q --to=base.vhd --delete "$child"
	is_raw base.vhd leaf.raw
	sound base.vhd
}

@test "--dry-run and --output of a child that has grown" {
	grown ""
	unchanged base.vhd leaf.avhd -- vhd-merge --dry-run leaf.avhd
	assert_status 0
	vhd-merge -q --output=new.vhd leaf.avhd
	is_raw new.vhd leaf.raw
}

@test "a hole in the child does not swallow the data behind it" {
	model make base.vhd --size=8M --fill=200:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=1:2M --seq --align=2M --zeros=0 --raw=leaf.raw
	at=$("$python" -c 'print(open("leaf.avhd", "rb").read().index(open("leaf.raw", "rb").read()[1998848:2064384]))')
	fallocate -p -o "$at" -l 65536 leaf.avhd
	fallocate -p -o 1998848 -l 65536 leaf.raw
	is_raw leaf.avhd leaf.raw
	vhd-merge -q leaf.avhd
	is_raw base.vhd leaf.raw
}

@test "--output onto a layer that a merge has changed is refused" {
	three
	model make top.avhd --parent=leaf.avhd --fill=20:4K --raw=leaf.raw --seed=9
	vhd-merge -q --to=base.vhd top.avhd
	refuses 78 base.vhd mid.avhd leaf.avhd top.avhd -- vhd-merge --to=leaf.avhd --output=new.avhd top.avhd
	[[ $stderr == *mid.avhd* ]]
}

@test "another child that is damaged counts as long as its header says whose it is" {
	local what
	three
	model make whole.avhd --parent=base.vhd --seed=7 --fill=3:4K
	for what in head.block=3 head.cookie=xxxxxxxx head.version=131072 foot.cookie=xxxxxxxx foot.cookie=v_poison; do
		cp whole.avhd other.avhd
		model poke --keep-sums other.avhd "$what"
		run vhd-check other.avhd
		assert_status 65
		refuses 78 base.vhd mid.avhd other.avhd -- vhd-merge mid.avhd
		[[ $stderr == *other.avhd*"is a child of"*base.vhd* ]]
	done
	head -c 2000 whole.avhd >other.avhd
	refuses 78 base.vhd mid.avhd other.avhd -- vhd-merge mid.avhd
	# what is being made, or was, is nobody's disk
	mv other.avhd .other.avhd.partial.tmp
	rm whole.avhd
	vhd-merge -q mid.avhd
}

@test "a damaged child of another disk does not count" {
	three
	model make stranger.vhd --size=4M --seed=5
	model make one.avhd --parent=stranger.vhd --fill=3:4K
	model poke --keep-sums one.avhd head.block=3
	vhd-merge -q mid.avhd
}

@test "a damaged child of a raw parent is known by the name" {
	head -c 1M /dev/urandom >base.img
	model make leaf.avhd --parent=base.img --raw-parent --fill=9:4K
	model make other.avhd --parent=base.img --raw-parent --fill=9:4K --seed=4
	model poke --keep-sums other.avhd head.block=3
	refuses 78 base.img leaf.avhd -- vhd-merge leaf.avhd
	[[ $stderr == *other.avhd* ]]
}
