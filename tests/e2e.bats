# SPDX-License-Identifier: BSD-2-Clause
# The main job, whole: a guest that writes all the time moves between two hosts.
load helper

setup() {
	scene_tools=$top/tests/lab
	scene=$BATS_TEST_TMPDIR
	# shellcheck source=/dev/null
	. "$scene_tools/scene.sh"
}

teardown() {
	if [ -z "$BATS_TEST_COMPLETED" ]; then
		for h in a b; do
			tail -n 5 "$scene/$h"/run/qsm/*/*.log "$scene/$h/sshd.log" "$scene/$h/log" 2>/dev/null || :
		done
	fi
	scene_down
}

# The guest on host b is ended there, and everything is looked for.
nothing_is_lost() {
	scene_acks b 100
	scene_hosts exec b hv-qemu --quiet stop guest
	run scene_check b
	echo "$output"
	assert_status 0
	assert_output_has $'\nlost=0\n'
	assert_output_has $'\nfiles_lost=0\n'
	assert_output_has $'\nreboots=0\n'
	assert_output_has $'\nended=1\n'
}

runs_on_at_the_source() {
	[ "$(scene_state a)" = running ] || fail "on host a the guest is $(scene_state a)"
	scene_acks a 100
	run scene_state b
	[ "$output" != running ]
}

source_cannot_start_it() {
	run scene_hosts exec a hv-qemu start guest
	assert_status 77
	[ "$(scene_state a .owner)" = moved ]
}

chains_are_merged() {
	for t in vda vdb; do
		run vhd-info --chain --json "$(scene_leaf b $t)"
		assert_status 0
		[ "$(ls "$scene/b/srv/arrived/guest/"$t.*)" = "$scene/b/srv/arrived/guest/$t.vhd" ] ||
			fail "not one file: $(ls "$scene/b/srv/arrived/guest/")"
	done
}

# bytes_arrived N: the destination's folder holds at least so many
bytes_arrived() {
	[ "$(du -s -B1 "$scene/b/srv/arrived" | cut -f1)" -ge "$1" ]
}

@test "a running guest moves to a host with other paths and networks, and nothing is lost" {
	needs_root
	scene_up
	scene_guest
	scene_start
	run scene_move
	echo "$output"
	assert_status 0
	[ "$(scene_state b)" = running ]
	source_cannot_start_it
	nothing_is_lost
	chains_are_merged
	scene_hosts exec b hv-qemu dumpxml guest | grep -q "network='green'\|network=\"green\""
}

@test "the same command again says that it is finished" {
	needs_root
	scene_up
	scene_guest
	scene_start
	scene_move
	run scene_move
	echo "$output"
	assert_status 0
	assert_output_has finished
	nothing_is_lost
}

@test "a guest moves without root, between folders" {
	scene_up --local
	scene_guest
	scene_start
	run scene_move
	echo "$output"
	assert_status 0
	source_cannot_start_it
	nothing_is_lost
	chains_are_merged
}

@test "a paused guest arrives paused, and its disks are equal on both sides" {
	scene_up --local
	scene_guest
	scene_start
	scene_hosts exec a hv-qemu pause guest
	run scene_move
	echo "$output"
	assert_status 0
	[ "$(scene_state b)" = paused ]
	for t in vda vdb; do
		# The model asks for no lock: on host b the disks are in use.
		run "$top/tests/model/vhdmodel.py" cmp "$(scene_leaf a $t)" "$(scene_leaf b $t)"
		assert_status 0
	done
	scene_hosts exec b hv-qemu resume guest
	nothing_is_lost
}

# To who opens them on either host, none of which runs it.
disks_are_equal() {
	local t a b
	for t in vda vdb; do
		a=$(vhd-sum "$(scene_leaf a $t)" | cut -d' ' -f1)
		b=$(vhd-sum "$(scene_leaf b $t)" | cut -d' ' -f1)
		[ -n "$a" ] && [ "$a" = "$b" ] || fail "$t: $a on host a, $b on host b" || return
	done
}

@test "a guest that is off arrives off, and its disks are equal on both sides" {
	scene_up --local
	scene_guest
	run scene_move
	echo "$output"
	assert_status 0
	[ "$(scene_state b)" = off ]
	source_cannot_start_it
	disks_are_equal
	scene_hosts exec b hv-qemu --quiet start guest
	nothing_is_lost
}

@test "a saved guest arrives saved, and goes on there as if nothing had happened" {
	needs_root
	scene_up
	scene_guest
	scene_start
	scene_hosts exec a hv-qemu --quiet save guest
	run scene_move
	echo "$output"
	assert_status 0
	[ "$(scene_state a)" = off ]
	[ "$(scene_state b)" = saved ]
	source_cannot_start_it
	disks_are_equal
	scene_hosts exec b hv-qemu --quiet resume guest
	nothing_is_lost
}

@test "a saved guest is still saved at the source when the destination fills up, and goes on there" {
	needs_root
	scene_up
	scene_guest
	scene_start
	scene_hosts exec a hv-qemu --quiet save guest
	# Room for the disks, but not for the state.
	scene_hosts exec b mount -t tmpfs -o size=30m tmpfs /var/lib/qsm
	run scene_move
	echo "$output"
	assert_status 80
	assert_output_has "No space left on device"
	[ "$(scene_state a)" = saved ]
	scene_hosts exec a hv-qemu --quiet resume guest
	runs_on_at_the_source
}

@test "a link that is cut during the copy: try again, and the same command finishes" {
	needs_root
	scene_up --rate=20mbit
	scene_guest
	scene_start
	scene_move --retry=0 3>&- &
	pid=$!
	wait_for bytes_arrived 4000000
	scene_hosts link cut
	status=0
	wait "$pid" || status=$?
	assert_status 75
	runs_on_at_the_source
	scene_hosts link restore
	scene_hosts rate off
	run scene_move
	echo "$output"
	assert_status 0
	source_cannot_start_it
	nothing_is_lost
	chains_are_merged
}

@test "a destination that is too small is refused before anything is touched" {
	needs_root
	scene_up
	scene_guest
	scene_start
	scene_hosts exec b mount -t tmpfs -o size=8m tmpfs /srv/arrived
	run scene_move
	echo "$output"
	assert_status 78
	assert_output_has "space"
	runs_on_at_the_source
}

@test "a destination that fills up during the copy: the guest runs on at the source" {
	needs_root
	scene_up --rate=20mbit
	scene_guest
	scene_start
	scene_hosts exec b mount -t tmpfs -o size=512m tmpfs /srv/arrived
	scene_hosts exec b sh -c '
		until [ "$(du -s -B1 /srv/arrived | cut -f1)" -gt 2000000 ]; do sleep 0.1; done
		dd if=/dev/zero of=/srv/arrived/filler bs=1M 2>/dev/null' 3>&- &
	filler=$!
	run scene_move
	kill "$filler" 2>/dev/null || :
	echo "$output"
	assert_status 80
	assert_output_has "No space left on device"
	runs_on_at_the_source
}
