#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-2-Clause
# Rule 1 of the design: what a guest was told is safe is there after the server was killed, after
# the power was cut, and after either in the middle of a live snapshot.

load helper
load plugin/serve

setup() {
	disks_setup
	case $BATS_TEST_DESCRIPTION in
	"power cuts"*) [ -z "${sanitizer:-}" ] || skip "the recorder and the sanitizers exclude each other" ;;
	esac
}

teardown() {
	end_servers
}

# A pointer $d/disk to a chain of one disk with some content; its raw twin is $s/initial.
some_disk() {
	"$model" make "$d/base.vhd" --size "${1:-6M}" --block 512K --fill "${2:-12:4096}" --raw "$s/initial"
	pointer disk "$d/base.vhd"
}

# The same without a single sector of zeros: nothing that was never written looks like old content.
full_disk() {
	"$model" make "$d/base.vhd" --size 6M --block 512K --fill 1536:4096 --seq --zeros 0 --raw "$s/initial"
	pointer disk "$d/base.vhd"
}

# Guest writes for a moment, acknowledged ones to the log number $1 of this test.
write_some() {
	"$guest" load "$s/a.nbd" "$s/log.$1" --seconds 0.15 --least 60 --threads 3 --seed "$1"
}

# As a restart finds it: every acknowledged write of all logs.
check_all() {
	"$guest" check "$s"/log.* "$d/disk" --initial "$s/initial"
}

# No rule of the format is broken. Data that came before its bit belongs to a write that was never
# acknowledged: it reads as old.
check_structures() {
	local faults
	faults=$("$model" check "$(readlink -f "$d/disk")" | grep -v 'data without its bit' || :)
	[ -z "$faults" ] || fail "$faults"
}

# The calls with which a live snapshot changes something, or which others can see, and which of them:
# locks and checks, the pointer, the replies, the flushes, the change of the old leaf's locks.
server_steps=('fcntl 1 8 15 16 19 22 26' 'symlink 1' 'rename 1' 'fsync 1' 'sendto 1 2 3'
	'recvfrom 2 3' 'fdatasync 1 2')
# Those of vhd-snap for two disks: creation, then status, prepare and commit of each.
snap_steps=('pwrite64 2' 'renameat2 1 2' 'fsync 2 4' 'sendto 2 3 4 5 6' 'recvfrom 2 3 4 5 6')

@test "kill -9 under load: every acknowledged write is there" {
	some_disk 12M
	for i in 1 2 3 4; do
		serve a file="$d/disk"
		"$guest" load "$s/a.nbd" "$s/log.$i" --until-death --seed "$i" >"$s/load.out" &
		load=$!
		wait_for guest_writes
		sleep 0.5
		[ "$i" -ne 2 ] || vhd-snap -q --live="$s/a.ctl"
		sleep 0.3
		end_server a KILL
		wait "$load"
		cat "$s/load.out" >&2
		check_all
		check_structures
	done
}

# While the guest writes, the server dies when it begins the N-th CALL of a snapshot in its control
# thread. Sets $died.
kill_server_at() {
	local call=$1 n=$2 load tracer
	serve a file="$d/disk"
	wait_for grep -qx vhd-control "/proc/$(cat "$s/a.pid")/task/"*/comm
	tid=$(grep -lx vhd-control "/proc/$(cat "$s/a.pid")/task/"*/comm | cut -d/ -f5)
	"$guest" load "$s/a.nbd" "$s/log.$call.$n" --until-death --threads 4 --seed "$call.$n" &
	load=$!
	strace -qq -o /dev/null -p "$tid" -e trace="$call" \
		-e "inject=$call:signal=KILL:when=$n" 2>/dev/null 3>&- &
	tracer=$!
	wait_for grep -q TracerPid:.[1-9] "/proc/$tid/status"
	wait_for guest_writes
	vhd-snap -q --live="$s/a.ctl" >"$s/snap.out" 2>"$s/snap.err" && died=false || died=true
	end_server a KILL
	wait "$load"
	wait "$tracer" || :
}

@test "the server is killed at every step of a snapshot, and a restart loses nothing" {
	some_disk
	for step in "${server_steps[@]}"; do
		for n in ${step#* }; do
			kill_server_at "${step%% *}" "$n"
			echo "${step%% *} $n: died=$died $(readlink "$d/disk" | tr -cd _ | wc -c)" |
				tee -a "$s/seen" >&2
			# the next start opens what the pointer names
			serve a file="$d/disk"
			control a status | jq -e .ok >/dev/null
			end_server a
			check_all || fail "killed at $step: $(cat "$s/snap.err")"
			check_structures
			[ "$(readlink "$d/disk")" = "$d/base.vhd" ] || start_over
		done
	done
	# the net was fine enough to meet both sides of the switch
	grep -q 'died=true 0' "$s/seen"
	grep -q 'died=true 1' "$s/seen"
	# a flush by a guest's request may serve the snapshot too; all else is the control thread's own
	run ! grep -E '^(fcntl|symlink|rename|fsync|sendto|recvfrom) .*died=false' "$s/seen"
}

start_over() {
	rm -rf "${d:?}"/* "$s"/log.*
	some_disk
}

@test "vhd-snap is killed at every step, and each disk goes on as the old or the new one" {
	some_disk
	vhd-create -q --size=4M "$d/other.vhd"
	pointer second "$d/other.vhd"
	for step in "${snap_steps[@]}"; do
		for n in ${step#* }; do
			serve a file="$d/disk"
			serve b file="$d/second"
			strace -qq -o /dev/null -e trace="${step%% *}" \
				-e "inject=${step%% *}:signal=KILL:when=$n" \
				vhd-snap -q --live="$s/a.ctl" --live="$s/b.ctl" >/dev/null 2>&1 &&
				fail "no such step: $step"
			wait_for nothing_prepared
			for name in a b; do
				leaf=$(control "$name" status | jq -r .leaf)
				file=$(control "$name" status | jq -r .file)
				[ "$(readlink "$file")" = "$leaf" ] || fail "killed at $step $n: $name"
			done
			write_some "$step.$n"
			end_server a KILL
			end_server b KILL
			check_all || fail "killed at $step $n"
		done
	done
}

nothing_prepared() {
	[ "$(control a status | jq .prepared) $(control b status | jq .prepared)" = "null null" ]
}

@test "when the server dies, its child stays if the pointer names it, else it goes" {
	some_disk
	for call in rename fsync; do
		kill_server_at "$call" 1
		[ "$died" = true ]
		[ -f "$(readlink "$d/disk")" ] || fail "$call: the pointer leads nowhere"
		[ "$call" = rename ] || [ "$(readlink "$d/disk")" != "$d/base.vhd" ]
		[ "$call" != rename ] || [ "$(readlink "$d/disk")" = "$d/base.vhd" ]
		start_over
	done
}

# Records what a server, and vhd-snap in the middle, do to the files; then cuts the power at
# many instants of that. Parameters: cuts, seconds at least, a command to be run in the middle.
power_cuts() {
	"${CC:-cc}" -O2 -shared -fPIC -o "$s/record.so" "$top/tests/plugin/record.c"
	cp -a "$d" "$s/before"
	export QSM_RECORD=$s/recording
	preload=${liar:+$liar:}$s/record.so
	serve a file="$d/disk"
	"$guest" load "$s/a.nbd" "$s/log" --seconds "$2" --least 300 --threads 6 --flush 0.06 >&2 &
	load=$!
	wait_for guest_writes
	sleep "$(awk "BEGIN { print $2 / 2 }")"
	LD_PRELOAD=$s/record.so "${@:3}" >&2
	wait "$load"
	end_server a KILL
	unset QSM_RECORD
	preload=
	mv "$d" "$d.now"
	"$top/tests/plugin/powercut.py" --dir="$d" --now="$d.now" --before="$s/before" --pointer=disk \
		--log="$s/log" --initial="$s/initial" --cuts="$1" "$s/recording"
}

@test "power cuts: flushed writes are there, others are old or new (growing dynamic disk)" {
	some_disk
	power_cuts 80 1.5 true
}

@test "power cuts: the same in a child" {
	full_disk
	vhd-snap -q -o "$d/leaf.avhd" "$d/base.vhd"
	ln -sfn "$d/leaf.avhd" "$d/disk"
	power_cuts 80 1.5 true
}

@test "power cuts: the same around a live snapshot" {
	full_disk
	power_cuts 80 1.5 vhd-snap -q --live="$s/a.ctl"
}

@test "power cuts: the checker notices a server that does not sync" {
	some_disk
	echo 'int fdatasync(int fd) { return fd < 0; }' | "${CC:-cc}" -xc -shared -fPIC -o "$s/nosync.so" -
	liar=$s/nosync.so
	run ! power_cuts 10 0.5 true
	assert_output_has "wanted one of"
}
