# SPDX-License-Identifier: BSD-2-Clause
# vhd-merge: a child into its parent; refused before a byte is written, or finished whatever happens.
load helper
load disks

setup() {
	workdir
}

# leaf.avhd on base.vhd, reading as leaf.raw. Options of the base and of the leaf.
pair() {
	# shellcheck disable=SC2086
	model make base.vhd --size=8M --fill=20:4K --raw=leaf.raw ${1-}
	cp leaf.raw base.raw
	# shellcheck disable=SC2086
	model make leaf.avhd --parent=base.vhd --fill=60:512 --raw=leaf.raw --seed=2 ${2-}
	model write leaf.avhd --fill=3:64K --raw=leaf.raw --seed=3
	vhd-sum leaf.avhd >/dev/null
}

# The merge, and whether everything is as it should be.
merges() {
	local sum
	sum=$(vhd-sum leaf.avhd | cut -d' ' -f1)
	run --separate-stderr vhd-merge "$@" leaf.avhd
	assert_status 0
	[ -z "$stderr" ] || fail "$stderr"
	is_raw base.vhd leaf.raw
	sound base.vhd
	[ "$(vhd-sum base.vhd | cut -d' ' -f1)" = "$sum" ]
}

# refuses STATUS COMMAND…: so, and nothing has changed
refuses() {
	local want=$1
	shift
	unchanged base.vhd leaf.avhd -- limited "$@"
	assert_status "$want"
	[ -z "$output" ] || fail "standard output"
	[ -n "$stderr" ] || fail "no message"
}

teardown() {
	[ -z "${fast-}" ] || rm -rf "$fast"
}

@test "the parent shows what the child showed, and its path is printed" {
	pair
	merges
	[ "$output" = "$(realpath base.vhd)" ] || [ "$output" = base.vhd ]
	is_raw leaf.avhd leaf.raw
}

@test "the parent keeps its identity" {
	pair
	before=$(field base.vhd foot.uid foot.timestamp foot.creator)
	merges
	[ "$(field base.vhd foot.uid foot.timestamp foot.creator)" = "$before" ]
}

@test "a file that we made stays sound by the strict rules" {
	pair
	merges
	sound --strict base.vhd
}

@test "into a fixed parent" {
	pair --kind=fixed
	merges
	sound --strict base.vhd
	[ "$(stat -c %s base.vhd)" -eq $((8388608 + 512)) ]
}

@test "into a raw parent" {
	head -c 4M /dev/urandom >base.raw
	cp base.raw leaf.raw
	model make leaf.avhd --parent=base.raw --raw-parent --fill=60:512 --raw=leaf.raw
	run --separate-stderr vhd-merge leaf.avhd
	assert_status 0
	cmp base.raw leaf.raw
}

@test "into a parent that is a child itself; its own parent is only read" {
	model make root.vhd --size=8M --fill=20:4K --raw=leaf.raw
	model make base.vhd --parent=root.vhd --fill=20:4K --raw=leaf.raw --seed=5
	model make leaf.avhd --parent=base.vhd --fill=60:512 --raw=leaf.raw --seed=2
	before=$(sha root.vhd)
	merges
	[ "$(sha root.vhd)" = "$before" ]
	[ "$(field base.vhd foot.type)" = 4 ]
}

@test "zeros that the child wrote hide what the parent had" {
	model make base.vhd --size=4M --fill=200:4K --zeros=0 --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=200:4K --zeros=1 --raw=leaf.raw --seed=2
	merges
}

@test "an empty child changes nothing" {
	model make base.vhd --size=8M --fill=20:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd
	before=$(sha base.vhd)
	run --separate-stderr vhd-merge leaf.avhd
	assert_status 0
	is_raw base.vhd leaf.raw
	[ "$(sha base.vhd)" = "$before" ]
}

@test "merged twice is merged once" {
	pair
	merges
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 0
	[ "$output" = "$(realpath base.vhd)" ] || [ "$output" = base.vhd ]
	[[ $stderr == *"nothing to do"* ]]
	run --separate-stderr vhd-merge --json leaf.avhd
	[ "$(json '[.already, .bytes] | map(tostring) | join(" ")')" = "true 0" ]
	run --separate-stderr vhd-merge --dry-run leaf.avhd
	[[ $output == *"nothing to do"* ]]
}

# guest FILE SEED: somebody writes to it
guest() {
	model write "$1" --fill=30:4K --seed="$2" --zeros=0
}

@test "a child that was merged is not merged again into a parent that was written to since" {
	pair
	vhd-merge -q leaf.avhd
	guest base.vhd 5
	for c in "" --dry-run --to=base.vhd; do
		# shellcheck disable=SC2086
		refuses 78 vhd-merge $c leaf.avhd
		[[ $stderr == *leaf.avhd*base.vhd*offset*--again* ]]
	done
	cp base.vhd want.vhd
	vhd-merge -q --again leaf.avhd
	[ "$(vhd-sum base.vhd | cut -d' ' -f1)" != "$(vhd-sum want.vhd | cut -d' ' -f1)" ]
}

@test "a child that was merged and written to since is merged again" {
	pair
	vhd-merge -q leaf.avhd
	model write leaf.avhd --fill=30:4K --seed=5 --raw=leaf.raw
	merges --delete
	[ ! -e base.vhd.absorbed ]
}

@test "both written to since: refused" {
	pair
	vhd-merge -q leaf.avhd
	guest leaf.avhd 5
	guest base.vhd 6
	refuses 78 vhd-merge leaf.avhd
}

@test "a parent that only looks as if it had been written to: nothing to do" {
	pair
	vhd-merge -q leaf.avhd
	cp base.vhd copy && mv copy base.vhd
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 0
	[[ $stderr == *"nothing to do"* ]]
	vhd-merge -q --delete leaf.avhd
	[ ! -e leaf.avhd ]
	is_raw base.vhd leaf.raw
}

@test "a child that was merged is deleted later" {
	pair
	vhd-merge -q leaf.avhd
	before=$(sha base.vhd)
	run --separate-stderr vhd-merge --delete leaf.avhd
	assert_status 0
	[ "$(ls base* leaf*)" = "$(printf 'base.raw\nbase.vhd\nleaf.raw')" ]
	[ "$(sha base.vhd)" = "$before" ]
}

@test "a child that was merged can be deleted when the parent was written to" {
	pair
	vhd-merge -q leaf.avhd
	# Not through the model: nothing but the times tells of that.
	need qemu-io
	qemu-io -f vpc -c 'write -P 7 1M 4K' base.vhd >/dev/null
	vhd-sum base.vhd >sum
	vhd-merge -q --delete leaf.avhd
	[ ! -e leaf.avhd ]
	vhd-sum --check sum
}

@test "what stands on a child that was merged goes into a parent that nobody has written to, only" {
	pair
	vhd-merge -q leaf.avhd
	child=$(vhd-snap -q leaf.avhd)
	model write "$child" --fill=30:4K --seed=5 --raw=leaf.raw
	mkdir before && cp --preserve=all base.vhd base.vhd.absorbed leaf.avhd "$child" before
	guest base.vhd 6
	refuses 78 vhd-merge --to=base.vhd "$child"
	[[ $stderr == *"stands on"* ]]
	rm base.vhd* && cp --preserve=all before/base.vhd .
	vhd-merge -q --to=base.vhd "$child"
	is_raw base.vhd leaf.raw
}

@test "a child that was merged warns when its parent was written to since" {
	pair
	vhd-merge -q leaf.avhd
	run --separate-stderr vhd-info --chain leaf.avhd
	[[ $output$stderr != *warning* ]]
	run vhd-check leaf.avhd
	assert_status 0
	assert_output_has absorbed
	guest base.vhd 5
	run --separate-stderr vhd-sum leaf.avhd
	assert_status 0
	[[ $stderr == *leaf.avhd*warning*base.vhd* ]]
	run vhd-check leaf.avhd
	assert_status 0
	assert_output_has parent-written
	run --separate-stderr vhd-sum base.vhd
	[ -z "$stderr" ]
}

@test "put back from a backup beside what an earlier merge noted: refused until somebody says so" {
	pair
	mkdir backup
	cp -p base.vhd leaf.avhd backup
	vhd-merge -q leaf.avhd
	cp -p backup/* .
	refuses 78 vhd-merge leaf.avhd
	[[ $stderr == *"--again, as when "*"base.vhd was put back from a backup"* ]]
	vhd-merge -q --again leaf.avhd
	is_raw base.vhd leaf.raw
	cp -p backup/* .
	rm base.vhd.absorbed
	vhd-merge -q leaf.avhd
	is_raw base.vhd leaf.raw
}

@test "a server that writes to the parent says so before it writes" {
	need nbdkit qemu-io
	[ -f "$QSM_PLUGIN" ] || skip "needs the plugin"
	pair
	vhd-merge -q leaf.avhd
	before=$(cat base.vhd.absorbed)
	nbdkit -U - "$QSM_PLUGIN" file=base.vhd --run 'env -u LD_PRELOAD qemu-io -f raw -c "read 0 512" "$uri"' >/dev/null
	[ "$(cat base.vhd.absorbed)" != "$before" ]
	grep -q '^target 0*$' base.vhd.absorbed
	# It has not written, and the two are compared.
	run --separate-stderr vhd-merge leaf.avhd
	assert_status 0
	[[ $stderr == *"nothing to do"* ]]
}

@test "what another child of the parent would lose: it was merged before" {
	pair
	vhd-merge -q leaf.avhd
	vhd-snap -q --output=other.avhd base.vhd
	refuses 78 vhd-merge other.avhd
	[[ $stderr == *leaf.avhd*"merged into"*"delete it"* ]]
}

@test "killed while the child is removed, and the parent is written to: the same command removes it" {
	need strace
	pair
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=unlink \
		-e inject=unlink:signal=KILL:when=1 vhd-merge -q --delete leaf.avhd
	assert_status 137
	[ -e leaf.avhd ]
	guest base.vhd 5
	vhd-sum base.vhd >sum
	vhd-merge -q --delete leaf.avhd
	[ ! -e leaf.avhd ]
	vhd-sum --check sum
}

# The merge is killed when it was to remove the child.
not_removed() {
	need strace
	pair
	mkdir backup
	cp -p base.vhd backup
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=unlink \
		-e inject=unlink:signal=KILL:when=1 vhd-merge -q --delete leaf.avhd
	assert_status 137
	grep -q '^state merged' base.vhd.merging
}

# What was put back does not hold what the child holds.
keeps_child() {
	refuses 78 vhd-merge --delete leaf.avhd
	[[ $stderr == *"--again, as when "*"base.vhd was put back from a backup"* ]]
	vhd-merge -q --delete --again leaf.avhd
	[ ! -e leaf.avhd ]
	is_raw base.vhd leaf.raw
}

@test "killed while the child is removed, and the parent is put back from a backup: the child stays" {
	not_removed
	cp backup/base.vhd new && mv new base.vhd
	keeps_child
}

@test "killed while the child is removed, and the parent is put back with its times: the child stays" {
	not_removed
	cp -p backup/base.vhd base.vhd
	keeps_child
}

@test "a child that was merged stays when the parent was put back from a backup, and served" {
	need nbdkit qemu-io
	[ -f "$QSM_PLUGIN" ] || skip "needs the plugin"
	pair
	cp base.vhd new
	vhd-merge -q leaf.avhd
	mv new base.vhd
	nbdkit -U - "$QSM_PLUGIN" file=base.vhd --run 'env -u LD_PRELOAD qemu-io -f raw -c "read 0 512" "$uri"' >/dev/null
	grep -q '^target 0*$' base.vhd.absorbed
	keeps_child
}

@test "killed while the child is removed: another user's word for it is not taken" {
	needs_root
	not_removed
	cp backup/base.vhd base.vhd
	chown nobody base.vhd.merging
	keeps_child
}

@test "another user's word that a child was merged is not taken" {
	needs_root
	pair
	vhd-merge -q leaf.avhd
	model write leaf.avhd --fill=30:4K --seed=5 --raw=leaf.raw
	chown nobody base.vhd.absorbed
	# Compared, and not the same
	refuses 78 vhd-merge leaf.avhd
	chown "$(stat -c %u base.vhd)" base.vhd.absorbed
	merges
}

@test "what was merged is told to whoever may read the disk, and to nobody else" {
	needs_root
	for mode in 600 640 664; do
		rm -f base.vhd* leaf.avhd leaf.raw
		pair
		chmod $mode base.vhd
		chown nobody base.vhd
		vhd-merge -q leaf.avhd
		[ "$(stat -c '%a %U' base.vhd.absorbed)" = "${mode/664/644} nobody" ]
	done
}

@test "a file of somebody else in the place of what was merged is not touched" {
	pair
	echo mine >base.vhd.absorbed
	refuses 65 vhd-merge leaf.avhd
	[[ $stderr == *base.vhd.absorbed* ]]
	[ "$(cat base.vhd.absorbed)" = mine ]
}

@test "into an empty parent, in whole blocks" {
	model make base.vhd --size=16M --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=8:2M --zeros=0 --seq --raw=leaf.raw
	merges
	sound --strict base.vhd
}

@test "the last block is cut by the end of the disk" {
	model make base.vhd --size=5243392 --fill=20:512 --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=10240:512 --seq --raw=leaf.raw --zeros=0
	merges
}

@test "all combinations of block sizes" {
	for p in 4K 64K 512K 2M 8M; do
		for c in 4K 256K 2M 8M; do
			rm -f base.vhd* leaf.avhd leaf.raw
			pair --block=$p --block=$c
			merges
			[ "$(field base.vhd head.block)" = "$(numfmt --from=iec $p)" ]
		done
	done
}

@test "a XenServer parent: its batmap stays true" {
	pair "--creator=tap --block=64K" "--creator=tap --locators=MacX,W2ku,W2ru --block=64K"
	merges
	[ "$(model info base.vhd | jq -r '.creator[0:3]')" = tap ]
}

@test "a XenServer parent with a Windows child" {
	pair --creator=tap --creator=win
	merges
}

@test "a hidden parent stays hidden" {
	pair "--creator=tap --hidden=1"
	merges
	[ "$(field base.vhd foot.hidden)" = 1 ]
}

@test "bytes that we do not know are kept" {
	pair
	model poke base.vhd foot.reserved=hex:$(printf '%0852d' 7)
	before=$(field base.vhd foot.reserved)
	merges
	[ "$(field base.vhd foot.reserved)" = "$before" ]
}

@test "a parent with a table that lies elsewhere and is longer than needed" {
	pair "--gap=64K --entries=5000"
	merges
	[ "$(field base.vhd head.entries)" = 5000 ]
}

@test "a footer of 511 bytes becomes one of 512" {
	pair --foot511 --foot511
	merges
	[ $(($(stat -c %s base.vhd) % 512)) -eq 0 ]
}

@test "an unaligned parent of Virtual PC" {
	pair "--creator=vpc --align=512" "--creator=vpc --align=512 --first-slot=4"
	merges
}

@test "--delete removes the child, and only that" {
	pair
	merges --delete
	[ "$(ls -A)" = $'base.raw\nbase.vhd\nleaf.raw' ]
}

@test "--delete of a child that is reached through a link" {
	pair
	ln -s leaf.avhd pointer
	run --separate-stderr vhd-merge --delete pointer
	assert_status 0
	[ ! -e leaf.avhd ]
	is_raw base.vhd leaf.raw
}

@test "--dry-run says what would be done, and changes nothing" {
	pair
	for o in --dry-run -n "--dry-run --delete" "-n --force"; do
		# shellcheck disable=SC2086
		unchanged base.vhd leaf.avhd -- vhd-merge $o leaf.avhd
		assert_status 0
		[[ $output == *base.vhd* ]]
	done
}

@test "--dry-run sees every reason for a refusal" {
	pair
	truncate -s 1M base.vhd
	refuses 65 vhd-merge --dry-run leaf.avhd
}

@test "--json of a dry run and of a merge" {
	pair
	run --separate-stderr vhd-merge --json --dry-run leaf.avhd
	assert_status 0
	json '.version == 1 and .dry_run and (.deleted | not)'
	json '.bytes > 0 and .bytes % 512 == 0 and .growth >= 0 and .space_free > 0'
	bytes=$(json .bytes)
	growth=$(json .growth)
	before=$(stat -c %s base.vhd)
	run --separate-stderr vhd-merge --json --delete leaf.avhd
	assert_status 0
	json '(.dry_run | not) and .deleted'
	json ".bytes == $bytes"
	json '.parent | endswith("base.vhd")'
	json '.child | endswith("leaf.avhd")'
	json '.uuid | length == 36'
	[ $(($(stat -c %s base.vhd) - before)) -le "$growth" ]
}

@test "quiet: only the result" {
	pair
	run --separate-stderr vhd-merge --quiet leaf.avhd
	assert_status 0
	[ "${#lines[@]}" -eq 1 ]
	[ -z "$stderr" ]
}

@test "--progress=json on standard error" {
	pair
	run --separate-stderr vhd-merge --progress=json leaf.avhd
	assert_status 0
	[ "${#lines[@]}" -eq 1 ]
	jq -es 'length > 0' <<<"$stderr"
}

@test "a parent with another UUID is refused" {
	pair
	model poke base.vhd foot.uid=hex:000102030405060708090a0b0c0d0e0f
	refuses 65 vhd-merge leaf.avhd
	[[ $stderr == *00010203-0405-0607-0809-0a0b0c0d0e0f* ]] || fail "found and wanted should be named"
}

@test "a child that is smaller than its parent is refused" {
	for size in 4M 8388096; do
		rm -f base.vhd* leaf.avhd leaf.raw
		model make base.vhd --size=8M --fill=20:4K
		model make leaf.avhd --parent=base.vhd --size=$size --fill=20:4K
		refuses 65 vhd-merge leaf.avhd
	done
}

@test "a raw parent of another size is refused" {
	truncate -s 4M base.vhd
	model make leaf.avhd --parent=base.vhd --raw-parent --size=8M --fill=20:4K
	refuses 65 vhd-merge leaf.avhd
}

@test "a child that was cut is refused" {
	pair
	size=$(stat -c %s leaf.avhd)
	cp leaf.avhd whole
	for n in $((size - 20000)) $((size / 2)) 6000 2048 1500 600 0; do
		head -c $n whole >leaf.avhd
		refuses 65 vhd-merge leaf.avhd
	done
}

@test "a parent that was cut is refused" {
	pair
	size=$(stat -c %s base.vhd)
	cp base.vhd whole
	for n in $((size - 20000)) $((size / 2)) 6000 2048 1500 600; do
		head -c $n whole >base.vhd
		refuses 65 vhd-merge leaf.avhd
	done
}

@test "a parent with one damaged footer is refused" {
	pair
	cp base.vhd whole
	for w in front end; do
		for c in foot.cookie=xonectix foot.hidden=1 foot.timestamp=5; do
			cp whole base.vhd
			model poke --which=$w base.vhd $c
			refuses 65 vhd-merge leaf.avhd
		done
		cp whole base.vhd
		model poke --which=$w --keep-sums base.vhd foot.timestamp=5
		refuses 65 vhd-merge leaf.avhd
	done
}

@test "a parent without its end footer is refused" {
	pair
	truncate -s -512 base.vhd
	refuses 65 vhd-merge leaf.avhd
}

@test "a header with a wrong checksum is refused, in parent and child" {
	pair
	cp base.vhd whole
	model poke --keep-sums base.vhd head.ptime=1
	refuses 65 vhd-merge leaf.avhd
	cp whole base.vhd
	model poke --keep-sums leaf.avhd head.ptime=1
	refuses 65 vhd-merge leaf.avhd
}

@test "a disk that a saved state depends on needs --force" {
	pair --saved=1
	refuses 65 vhd-merge leaf.avhd
	[[ $stderr == *--force* ]]
	merges --force
}

@test "a disk without a parent is refused" {
	model make base.vhd --size=4M --fill=3:4K
	cp base.vhd leaf.avhd
	refuses 65 vhd-merge leaf.avhd
	model make leaf.avhd --size=4M --kind=fixed
	refuses 65 vhd-merge leaf.avhd
	truncate -s 4M leaf.avhd
	refuses 65 vhd-merge leaf.avhd
}

@test "a missing child, a missing parent" {
	refused 66 vhd-merge leaf.avhd
	pair
	rm base.vhd
	refused 66 vhd-merge leaf.avhd
	[[ $stderr == *base.vhd* ]]
}

@test "exactly one child" {
	pair
	refuses 64 vhd-merge
	refuses 64 vhd-merge leaf.avhd leaf.avhd
}

@test "a child in use is 75" {
	pair
	for mode in read write; do
		hold leaf.avhd $mode
		refuses 75 vhd-merge leaf.avhd
		release
	done
}

@test "a parent in use is 75" {
	pair
	for mode in read write; do
		hold base.vhd $mode
		refuses 75 vhd-merge leaf.avhd
		[[ $stderr == *base.vhd* ]]
		release
	done
}

@test "a parent that another child has open is not merged into" {
	pair
	model make other.avhd --parent=base.vhd --seed=7 --fill=3:4K
	need nbdkit
	[ -f "$QSM_PLUGIN" ] || skip "needs the plugin"
	nbdkit -U sock -P pid "$QSM_PLUGIN" file=other.avhd 3>&-
	wait_for test -s pid
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	kill "$(cat pid)"
	assert_status 75
}

@test "QEMU cannot write to what is being merged" {
	need strace qemu-io
	pair
	env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=fdatasync \
		-e inject=fdatasync:signal=STOP:when=2 vhd-merge leaf.avhd >out 3>&- &
	wait_for grep -q 'stopped by SIGSTOP' trace
	[ -e base.vhd.merging ]
	run qemu-io -f vpc -c 'write 0 512' base.vhd
	[ "$status" -ne 0 ]
	[[ $output == *lock* ]] || fail "not because of the lock"
	kill -CONT "$(pgrep -P $!)"
	wait $!
	is_raw base.vhd leaf.raw
}

@test "SIGINT and SIGTERM: 75, and the same command finishes" {
	need strace
	for s in INT TERM; do
		rm -f base.vhd* leaf.avhd leaf.raw
		pair
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64 \
			-e inject=pwrite64:signal=$s:when=6 vhd-merge leaf.avhd
		grep -q "SIG$s" trace
		[ "$status" -eq 75 ] || [ "$status" -eq 0 ] || fail "status after SIG$s"
		is_raw leaf.avhd leaf.raw
		merges
	done
}

@test "while a merge is unfinished, the parent opens only through that child" {
	need strace
	pair
	model make other.avhd --parent=base.vhd --seed=7 --fill=3:4K
	# A child that the merge would find is a reason not to begin.
	mkdir away && mv other.avhd away
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:signal=KILL:when=20 vhd-merge leaf.avhd
	assert_status 137
	mv away/other.avhd .
	for c in "vhd-sum base.vhd" "vhd-info --chain base.vhd" "vhd-convert --type=raw base.vhd x" \
		"vhd-snap base.vhd" "vhd-sum other.avhd" "vhd-merge other.avhd" "vhd-sum ./base.vhd"; do
		# shellcheck disable=SC2086
		refused 75 $c
		[[ $stderr == *leaf.avhd* ]] || fail "$c: no word of the child"
	done
	is_raw leaf.avhd leaf.raw
	rm other.avhd
	vhd-snap leaf.avhd >child 2>/dev/null && is_raw "$(cat child)" leaf.raw && rm -f "$(cat child)"
	merges
	vhd-sum base.vhd
}

@test "an unfinished merge does not hide behind another name of the parent" {
	need strace
	pair
	ln -s base.vhd link.vhd
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:signal=KILL:when=20 vhd-merge leaf.avhd
	assert_status 137
	refused 75 vhd-sum link.vhd
}

@test "killed before every write: same block sizes" {
	faults mergefaults kill same
}

@test "killed before every write, with --delete" {
	faults mergefaults kill same --delete
}

@test "killed before writes: other parents" {
	for k in blocks large tap old foot511 fixed raw middle deep grown grownfixed; do
		faults mergefaults kill $k --most=14
	done
}

@test "killed before every write: several layers at once, with --delete" {
	faults mergefaults kill deep --delete
}

@test "no space or a bad disk at any write" {
	for k in same fixed tap deep grown; do
		faults mergefaults error $k --most=16
	done
}

@test "the power goes at any moment" {
	for k in same blocks tap old fixed raw middle deep; do
		faults mergefaults power $k --most=40 --seed="$chance"
	done
}

@test "the power goes at any moment, with --delete" {
	faults mergefaults power same --most=60 --delete --seed="$chance"
	faults mergefaults power deep --most=60 --delete --seed="$chance"
}

@test "killed, started again, and then the power goes" {
	for k in same tap middle; do
		faults mergefaults twice $k --most=30 --seed="$chance"
	done
}

@test "a full disk is seen before the first byte" {
	needs_root
	model make base.vhd --size=64M --fill=2:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=8:2M --seq --zeros=0 --seed=2
	small=$(($(stat -c %s leaf.avhd) + $(stat -c %s base.vhd) + 4000000))
	run small_fs $small 'cp base.vhd leaf.avhd small/; sha256sum <small/base.vhd;
		vhd-merge small/leaf.avhd; echo status $?; sha256sum <small/base.vhd; ls -A small'
	assert_status 0
	assert_output_has "status 73"
	[ "$(grep -c "$(sha base.vhd)" <<<"$output")" -eq 2 ]
	[ "$(tail -n 2 <<<"$output")" = $'base.vhd\nleaf.avhd' ]
}

@test "scattered sectors cost one write each, not a block" {
	need strace
	model make base.vhd --size=64M --fill=32:2M --zeros=0 --seq
	model make leaf.avhd --parent=base.vhd --fill=500:4K --zeros=0 --seed=9
	env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64,pread64,ftruncate,fsync,fdatasync \
		vhd-merge leaf.avhd
	[ "$(grep -c pwrite64 trace)" -gt 400 ]
	[ "$(grep -c pwrite64 trace)" -lt 700 ]
	[ "$(grep -cE 'fsync|fdatasync' trace)" -lt 20 ]
	[ "$(grep -c ftruncate trace)" -lt 10 ]
}

@test "the parent of an allowed folder only" {
	mkdir base leaf
	model make base/base.vhd --size=4M --fill=3:4K --raw=leaf.raw
	model make leaf/leaf.avhd --parent=base/base.vhd --text='..\base\base.vhd' --fill=30:512 --raw=leaf.raw --seed=4
	unchanged base/base.vhd leaf/leaf.avhd -- vhd-merge leaf/leaf.avhd
	assert_status 65
	[[ $stderr == *--parent-dir=* ]]
	vhd-merge --parent-dir=base leaf/leaf.avhd
	is_raw base/base.vhd leaf.raw
}

@test "names with spaces, quotes, newlines and more" {
	for n in 'a b' "it's" $'new\nline' 'schön 盘' '$(x)' '-dash'; do
		rm -f leaf.raw
		model make "./$n.vhd" --size=1M --fill=9:512 --raw=leaf.raw
		model make "./$n.avhd" --parent="./$n.vhd" --fill=9:512 --raw=leaf.raw --seed=2
		vhd-merge --delete -- "$n.avhd" >out || fail "$n"
		[ ! -e "./$n.avhd" ]
		is_raw "./$n.vhd" leaf.raw
	done
}

@test "while the merged parent is not there, the child stays" {
	need strace
	model make base.vhd --size=4M --fill=5:4K
	model make child.avhd --parent=base.vhd --fill=9:4K --raw=want.raw
	run env ASAN_OPTIONS=detect_leaks=0 strace -qq -o trace -e trace=unlink -P "$PWD/child.avhd" \
		-e inject=unlink:signal=KILL vhd-merge --delete child.avhd
	assert_status 137
	grep -q '^state merged$' base.vhd.merging
	mv base.vhd away
	refused 66 vhd-merge --delete child.avhd
	[ -e child.avhd ]
	mv away base.vhd
	vhd-merge --delete child.avhd
	[ ! -e child.avhd ]
	is_raw base.vhd want.raw
}
