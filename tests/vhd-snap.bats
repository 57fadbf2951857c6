#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-2-Clause
# vhd-snap: children of disks at rest and of disks that are served, all or none.

load helper
load plugin/serve

setup() {
	disks_setup
	export ASAN_OPTIONS=detect_leaks=0 # it does not work under strace
}

teardown() {
	end_servers
}

# Everything in the folder, with its content.
folder_sum() {
	(cd "$d" && find . -type f -exec sha256sum {} + -o -type l -printf '%p %l\n' | sort)
}

# Two served disks: pointers $d/one and $d/two.
serve_two() {
	for n in one two; do
		vhd-create -q --size=8M "$d/$n.vhd"
		pointer "$n" "$d/$n.vhd"
		serve "$n" file="$d/$n"
	done
}

leaf_of() {
	control "$1" status | jq -r .leaf
}

@test "the child is empty, beside its parent, named after it, and its path is printed" {
	disk_with_data disk.vhd 8M
	run --separate-stderr vhd-snap "$d/disk.vhd"
	assert_status 0
	[[ $output =~ ^"$d"/disk_[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\.avhd$ ]] || fail "odd name"
	[ -z "$stderr" ]
	[ "$(vhd-info --json "$output" | jq -r '.files[0].type // .type')" = differencing ]
	[ "$("$model" sha "$output")" = "$("$model" sha "$d/disk.vhd")" ]
	[ "$(stat -c %s "$output")" -lt 200000 ]
}

@test "the suffix of an earlier snapshot is replaced, so that names do not grow" {
	vhd-create -q --size=8M "$d/disk.vhd"
	one=$(vhd-snap "$d/disk.vhd")
	two=$(vhd-snap "$one")
	[ "${#one}" -eq "${#two}" ]
	[ "$one" != "$two" ]
	[[ $two == "$d"/disk_* ]]
}

@test "several disks get a child each, in order" {
	vhd-create -q --size=8M "$d/one.vhd"
	vhd-create -q --size=9M "$d/two.vhd"
	run --separate-stderr vhd-snap "$d/two.vhd" "$d/one.vhd"
	assert_status 0
	[[ ${lines[0]} == "$d"/two_* && ${lines[1]} == "$d"/one_* && ${#lines[@]} -eq 2 ]]
}

@test "one missing disk, and nothing is made" {
	vhd-create -q --size=8M "$d/one.vhd"
	before=$(folder_sum)
	run vhd-snap "$d/one.vhd" "$d/none.vhd"
	assert_status 66
	assert_output_has none.vhd
	[ "$(folder_sum)" = "$before" ]
}

@test "a failure in the middle removes the children that were made" {
	vhd-create -q --size=8M "$d/one.vhd"
	vhd-create -q --size=8M "$d/two.vhd"
	before=$(folder_sum)
	run strace -f -qq -o /dev/null -e trace=renameat2,link \
		-e inject=renameat2,link:error=ENOSPC:when=2 vhd-snap "$d/one.vhd" "$d/two.vhd"
	assert_status 73
	[ "$(folder_sum)" = "$before" ] || fail "$(ls -la "$d")"
}

@test "an interrupt in the middle removes the children that were made" {
	vhd-create -q --size=8M "$d/one.vhd"
	vhd-create -q --size=8M "$d/two.vhd"
	before=$(folder_sum)
	run strace -f -qq -o /dev/null -e trace=renameat2,link \
		-e inject=renameat2,link:signal=TERM:when=1 vhd-snap "$d/one.vhd" "$d/two.vhd"
	assert_status 75
	[ "$(folder_sum)" = "$before" ] || fail "$(ls -la "$d")"
}

@test "a disk that is in use is refused" {
	vhd-create -q --size=8M "$d/disk.vhd"
	serve a file="$d/disk.vhd"
	before=$(folder_sum)
	run vhd-snap "$d/disk.vhd"
	assert_status 75
	[ "$(folder_sum)" = "$before" ]
}

@test "a parent that a child in use hides may get another child" {
	vhd-create -q --size=8M "$d/disk.vhd"
	vhd-snap -q -o "$d/leaf.avhd" "$d/disk.vhd"
	serve a file="$d/leaf.avhd"
	vhd-snap -q -o "$d/other.avhd" "$d/disk.vhd"
}

@test "--output names the child" {
	vhd-create -q --size=8M "$d/disk.vhd"
	run vhd-snap --output="$d/child.avhd" "$d/disk.vhd"
	assert_status 0
	[ "$output" = "$d/child.avhd" ]
	[ -f "$d/child.avhd" ]
}

@test "--directory is where the children go, and --parent-dir how they are read" {
	vhd-create -q --size=8M "$d/disk.vhd"
	mkdir "$d/sub"
	run vhd-snap --directory="$d/sub" "$d/disk.vhd"
	assert_status 0
	[[ $output == "$d"/sub/disk_*.avhd ]]
	vhd-info --chain --parent-dir="$d" "$output"
}

@test "a folder that is missing is named" {
	vhd-create -q --size=8M "$d/disk.vhd"
	run vhd-snap --directory="$d/sub" "$d/disk.vhd"
	assert_status 73
	assert_output_has "$d/sub"
}

@test "an existing file is only replaced with --force" {
	vhd-create -q --size=8M "$d/disk.vhd"
	echo old >"$d/child.avhd"
	run vhd-snap -o "$d/child.avhd" "$d/disk.vhd"
	assert_status 73
	[ "$(cat "$d/child.avhd")" = old ]
	vhd-snap -f -o "$d/child.avhd" "$d/disk.vhd"
	vhd-info "$d/child.avhd"
}

@test "--force replaces no disk of the parent's own chain" {
	vhd-create -q --size=8M "$d/base.vhd"
	vhd-snap -o "$d/disk.avhd" "$d/base.vhd"
	before=$(folder_sum)
	ln "$d/base.vhd" "$s/hard"
	for child in "$d/disk.avhd" "$d/base.vhd" "$s/hard"; do
		run vhd-snap -f -o "$child" "$d/disk.avhd"
		assert_status 65
	done
	[ "$(folder_sum)" = "$before" ]
}

@test "--force replaces no disk that is in use" {
	vhd-create -q --size=8M "$d/disk.vhd"
	vhd-create -q --size=8M "$d/used.vhd"
	serve a file="$d/used.vhd"
	run vhd-snap -f -o "$d/used.vhd" "$d/disk.vhd"
	assert_status 75
}

@test "--dry-run checks and changes nothing" {
	vhd-create -q --size=8M "$d/disk.vhd"
	before=$(folder_sum)
	run vhd-snap --dry-run -o "$d/child.avhd" "$d/disk.vhd"
	assert_status 0
	[ "$output" = "$d/child.avhd" ]
	run vhd-snap -n "$d/none.vhd"
	assert_status 66
	[ "$(folder_sum)" = "$before" ]
}

@test "odd names: spaces, quotes, newlines, a leading dash, other scripts" {
	cd "$d"
	for name in 'a b' "it's \"so\"" $'two\nlines' -dash ディスク ümlaut. ..x; do
		vhd-create -q --size=4M -- "$name.vhd"
		vhd-snap --null -- "$name.vhd" >"$s/out"
		[ "$(tr -cd '\0' <"$s/out" | wc -c)" -eq 1 ]
		IFS= read -r -d '' child <"$s/out"
		[ -f "$child" ] || fail "no child: $child"
		"$model" cmp -- "./$child" "./$name.vhd"
	done
}

@test "--json names parents and children" {
	vhd-create -q --size=8M "$d/disk \"1\".vhd"
	run --separate-stderr vhd-snap --json -o "$d/child.avhd" "$d/disk \"1\".vhd"
	[ "$(jq -c . <<<"$output")" = "{\"version\":1,\"snapshots\":[{\"parent\":$(jq -cn --arg n "$d/disk \"1\".vhd" '$n'),\"child\":\"$d/child.avhd\"}]}" ] ||
		fail "wrong JSON"
}

@test "a pointer's child lies beside the disk, not beside the pointer" {
	mkdir "$d/store"
	vhd-create -q --size=8M "$d/store/disk.vhd"
	pointer vda "$d/store/disk.vhd"
	run vhd-snap "$d/vda"
	assert_status 0
	[[ $output == "$d"/store/disk_* ]] || fail "wrong folder"
}

@test "wrong usage" {
	vhd-create -q --size=8M "$d/disk.vhd"
	for args in '' "--output=$d/x $d/disk.vhd $d/disk.vhd" "-o x --directory=$d $d/disk.vhd" \
		"--frobnicate $d/disk.vhd" "--output= $d/disk.vhd"; do
		# shellcheck disable=SC2086 # several words
		run vhd-snap $args
		assert_status 64
	done
}

# Live

@test "live: the server switches to the child, the parent is frozen" {
	serve_two
	run --separate-stderr vhd-snap --live="$s/one.ctl" "$d/one.vhd"
	assert_status 0
	[[ $output == "$d"/one_*.avhd ]]
	[[ $stderr == *"held off"* ]]
	[ "$(leaf_of one)" = "$output" ]
	[ "$(readlink "$d/one")" = "$output" ]
	sum=$(sha256sum "$d/one.vhd")
	qemu-io -f raw -c 'write -P 5 1M 4k' "$(uri one)" >&2
	[ "$(sha256sum "$d/one.vhd")" = "$sum" ]
	end_server one
	"$model" cat "$output" | tail -c +1048577 | head -c 4096 | tr -d '\5' | cmp - /dev/null
}

@test "live: without a PARENT the server is asked what it serves" {
	serve_two
	run --separate-stderr vhd-snap -q --live="$s/two.ctl" --live="$s/one.ctl"
	assert_status 0
	[[ ${lines[0]} == "$d"/two_*.avhd && ${lines[1]} == "$d"/one_*.avhd ]]
	[ -z "$stderr" ]
	[ "$(leaf_of two)" = "${lines[0]}" ]
	[ "$(leaf_of one)" = "${lines[1]}" ]
}

@test "live: sockets and disks are matched whatever their order, and by pointer or leaf" {
	serve_two
	run --separate-stderr vhd-snap -q --live="$s/two.ctl" --live="$s/one.ctl" "$d/one" "$d/two.vhd"
	assert_status 0
	[ "$(leaf_of one)" = "${lines[0]}" ]
	[ "$(leaf_of two)" = "${lines[1]}" ]
}

@test "live: a second snapshot stands on the first" {
	serve_two
	one=$(vhd-snap -q --live="$s/one.ctl")
	two=$(vhd-snap -q --live="$s/one.ctl")
	[ "$(control one status | jq -c .chain)" = "[\"$two\",\"$one\",\"$d/one.vhd\"]" ]
}

@test "live: a socket that serves another disk is refused, and nothing is changed" {
	serve_two
	before=$(folder_sum)
	run vhd-snap --live="$s/one.ctl" "$d/two.vhd"
	assert_status 65
	assert_output_has two.vhd
	run vhd-snap --live="$s/one.ctl" --live="$s/two.ctl" "$d/one.vhd"
	assert_status 64
	[ "$(folder_sum)" = "$before" ]
}

@test "live: DISK= is checked, as a path or as the name in the VM" {
	serve_two
	before=$(folder_sum)
	run vhd-snap -n --live=two="$s/one.ctl"
	assert_status 65
	run vhd-snap -n --live="$d/two.vhd=$s/one.ctl"
	assert_status 65
	vhd-snap -n --live=one="$s/one.ctl"
	vhd-snap -n --live="$d/one.vhd=$s/one.ctl"
	ln "$s/one.ctl" "$s/a=b.ctl"
	vhd-snap -n --live="$s/a=b.ctl"
	vhd-snap -n --live="one=$s/a=b.ctl"
	[ "$(folder_sum)" = "$before" ]
}

@test "live: nobody at the socket" {
	run vhd-snap --live="$s/none.ctl"
	assert_status 69
	assert_output_has none.ctl
}

@test "live: something else at the socket" {
	socat UNIX-LISTEN:"$s/x.ctl" SYSTEM:'echo hello; sleep 1' 3>&- &
	wait_for test -S "$s/x.ctl"
	run vhd-snap --live="$s/x.ctl"
	assert_status 69
}

@test "live: when one disk cannot prepare, the other goes back and nothing is left" {
	serve_two
	# a disk without a pointer cannot
	vhd-create -q --size=8M "$d/three.vhd"
	serve three file="$d/three.vhd"
	before=$(folder_sum)
	run vhd-snap --live="$s/one.ctl" --live="$s/two.ctl" --live="$s/three.ctl"
	assert_status 65
	assert_output_has symlink
	[ "$(folder_sum)" = "$before" ] || fail "$(ls -la "$d")"
	[ "$(control one status | jq -c '[.leaf, .prepared]')" = "[\"$d/one.vhd\",null]" ]
	# and the snapshot can be made once the cause is gone
	vhd-snap -q --live="$s/one.ctl" --live="$s/two.ctl"
}

@test "live: when the first disk cannot commit, all go back" {
	serve_two
	qemu-io -t writeback -f raw -c 'write -P 3 0 4k' "$(uri one)" >&2
	before=$(cd "$d" && ls)
	strace -f -qq -o "$s/trace" -p "$(cat "$s/one.pid")" -e trace=fdatasync \
		-e inject=fdatasync:error=EIO 2>"$s/strace" 3>&- &
	tracer=$!
	wait_for is_traced "$(cat "$s/one.pid")"
	run vhd-snap --live="$s/one.ctl" --live="$s/two.ctl"
	kill "$tracer"
	assert_status 74
	[ "$(cd "$d" && ls)" = "$before" ] || fail "$(ls -la "$d")"
	[ "$(leaf_of two)" = "$d/two.vhd" ]
	[ "$(readlink "$d/one")" = "$d/one.vhd" ]
	[ "$(readlink "$d/two")" = "$d/two.vhd" ]
}

@test "live: when a later disk cannot commit, that is said and the others stay switched" {
	serve_two
	strace -f -qq -o "$s/trace" -p "$(cat "$s/two.pid")" -e trace=fdatasync \
		-e inject=fdatasync:error=EIO 2>"$s/strace" 3>&- &
	tracer=$!
	wait_for is_traced "$(cat "$s/two.pid")"
	qemu-io -t writeback -f raw -c 'write -P 3 0 4k' "$(uri two)" >&2 || :
	run --separate-stderr vhd-snap --live="$s/one.ctl" --live="$s/two.ctl"
	kill "$tracer"
	assert_status 74
	[ "$output" = "$(leaf_of one)" ]
	[[ $stderr == *"two.vhd: not switched"* ]]
	[ "$(readlink "$d/two")" = "$d/two.vhd" ]
	[ "$(find "$d" -name '*.avhd')" = "$output" ]
}

@test "live: --json tells how long each guest was held off" {
	serve_two
	run --separate-stderr vhd-snap -q --json --live="$s/one.ctl" --live="$s/two.ctl"
	jq -e --arg d "$d" '.version == 1 and (.snapshots | length == 2) and
		(.snapshots[0].parent == $d + "/one.vhd") and
		all(.snapshots[]; .blocked_us >= 0)' <<<"$output"
}

@test "live: a name that the protocol cannot carry is refused before anything is made" {
	serve_two
	before=$(folder_sum)
	run vhd-snap --live="$s/one.ctl" -o "$d/"$'\xff'.avhd
	[ "$status" -ne 0 ]
	[ "$(folder_sum)" = "$before" ]
}
