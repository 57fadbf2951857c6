# SPDX-License-Identifier: BSD-2-Clause
# A transfer one side of which goes away: the other one ends soon, with the right status and a message
# that says how to go on. One that only waits is not gone.
load helper
load disks
load streams

setup() {
	workdir
	head -c 24M /dev/urandom >disk.raw
	mkfifo pipe
}

teardown() {
	[ ! -d "$BATS_TEST_TMPDIR/lab" ] || "$top/tests/lab/hosts" -C "$BATS_TEST_TMPDIR/lab" down
}

# start [RATE]: both sides, slow enough to be met in the middle; goes_on lets the rest come at once
start() {
	echo "${1:-1M}" >rate
	vhd-send --raw --checkpoint=1M --rate-file=rate disk.raw >pipe 2>send.err 3>&- &
	sender=$!
	vhd-recv --type=raw out <pipe >got 2>recv.err 3>&- &
	receiver=$!
}

goes_on() {
	echo 0 >rate
	kill -HUP $sender
}

far() {
	wait_for sh -c '[ "$(vhd-recv --status --json out | jq ".offset // 0")" -gt 1000000 ]'
}

# Seconds in which a side ends. They promise ten; on top comes what a busy machine takes for this test and a slow
# disk for its last sync. Who did not notice would take more than a minute for its next record.
soon=20

# ends PID STATUS: soon
ends() {
	local began=$SECONDS status=0
	wait_for eval "! kill -0 $1 2>/dev/null"
	wait "$1" || status=$?
	[ $((SECONDS - began)) -le $soon ] || fail "it lived on for $((SECONDS - began)) s"
	[ "$status" -eq "$2" ] || fail "status $status, wanted $2" "$(cat send.err recv.err)"
}

finishes() {
	vhd-send --raw --resume="$(vhd-recv --token out)" disk.raw | vhd-recv --type=raw out
	cmp out disk.raw
}

@test "the receiver is killed" {
	start
	far
	kill -KILL $receiver
	ends $sender 69
	grep -q 'went away.*--resume="$(vhd-recv --token FILE)"' send.err || fail "$(cat send.err)"
	finishes
}

@test "the receiver is killed while the sender is slow" {
	start 2K
	wait_for test -e .out.partial-log.tmp
	kill -KILL $receiver
	ends $sender 69
}

@test "the sender is killed" {
	start
	far
	kill -KILL $sender
	ends $receiver 75
	grep -q 'vhd-send --resume="$(vhd-recv --token FILE)" goes on, vhd-recv --abort FILE' recv.err || fail "$(cat recv.err)"
	finishes
}

@test "the sender is killed before there is anything to keep" {
	start 2K
	wait_for test -e .out.partial-log.tmp
	kill -KILL $sender
	ends $receiver 76
	grep -q 'run the same command again' recv.err || fail "$(cat recv.err)"
	nothing_left disk.raw pipe rate got send.err recv.err
	finishes
}

@test "the receiver's disk is full" {
	need mkfs.ext4
	needs_root
	truncate -s 48M fs.img
	mkfs.ext4 -q fs.img
	mkdir fs
	run --separate-stderr unshare -m sh -ec '
		mount -o loop fs.img fs || exit 99
		fallocate -l 28M fs/filler
		{ vhd-send --raw --checkpoint=1M disk.raw 2>send.err || echo $? >send.status; } |
			{ vhd-recv --type=raw fs/out 2>recv.err >got || echo $? >recv.status; date +%s >ended; }
		[ $(($(date +%s) - $(cat ended))) -le '$soon' ]
		[ ! -e fs/out ]
		at=$(vhd-recv --status --json fs/out | jq ".offset // 0")
		[ "$at" -gt 3000000 ]
		rm fs/filler
		vhd-send --raw --checkpoint=1M --resume="$(vhd-recv --token fs/out)" disk.raw | tee rest |
			vhd-recv --type=raw fs/out
		cmp fs/out disk.raw
		[ "$(stat -c %s rest)" -lt $((24 * 1048576 - at + 10000)) ]'
	[ "$status" -ne 99 ] || skip "cannot mount here"
	assert_status 0
	[ "$(cat send.status) $(cat recv.status)" = "69 73" ] || fail "$(cat send.status recv.status send.err recv.err)"
	grep -q 'No space left' recv.err
	grep -q 'goes on, vhd-recv --abort' recv.err
	grep -q 'went away' send.err
}

@test "the disk is full while what was received is merged" {
	model make base.vhd --size=32M --raw=base.raw
	cp base.raw all.raw
	model make child.avhd --parent=base.vhd --fill=1500:4K --zeros=0 --raw=all.raw
	# The child fits, and not once more.
	run --separate-stderr small_fs 11M '
		set +e
		cp base.vhd small/disk.vhd
		send() { vhd-send -q --checkpoint=1M --resume="$(vhd-recv --token small/disk.vhd)" --from=base.vhd child.avhd; }
		send | vhd-recv --onto small/disk.vhd >got 2>err; [ $? -eq 73 ] || exit 1
		grep -q -- --token err || exit 2
		vhd-info small/disk.vhd 2>/dev/null && exit 3
		mount -o remount,size=40M small || exit 99
		send | vhd-recv --onto small/disk.vhd >got || exit 4
		cp small/disk.vhd done.vhd
		[ "$(ls -A small)" = disk.vhd ] || exit 5'
	assert_status 0
	is_raw done.vhd all.raw
}

@test "one that is stopped is not gone" {
	start
	far
	kill -STOP $receiver
	sleep 11
	kill -0 $sender
	kill -CONT $receiver
	kill -STOP $sender
	sleep 11
	kill -0 $receiver
	kill -CONT $sender
	goes_on
	wait $sender
	wait $receiver
	cmp out disk.raw
}

# over_ssh: from host a to host b, with a real sshd there
over_ssh() {
	needs_root
	need ssh
	hosts=$top/tests/lab/hosts
	export QSM_LAB=$BATS_TEST_TMPDIR/lab
	"$hosts" up "$QSM_LAB"
	cp disk.raw "$QSM_LAB/a/srv/"
	there=$QSM_LAB/b/srv
	# shellcheck disable=SC2016
	"$hosts" exec a env PATH="$PATH" sh -c '
		{ vhd-send --raw --checkpoint=1M --rate-limit=1M /srv/disk.raw 2>/srv/send.err; echo $? >/srv/send.status; } |
			ssh -o BatchMode=yes hostb "$1 --type=raw /srv/out 2>/srv/recv.err; echo \$? >/srv/recv.status"' \
		sh "$QSM_BUILD/src/vhd-recv" >/dev/null 2>&1 3>&- &
	wait_for sh -c '[ "$(vhd-recv --status --json '"$there"'/out | jq ".offset // 0")" -gt 1000000 ]'
}

both_ended() {
	wait_for test -s "$QSM_LAB/a/srv/send.status" || fail "the sender is still there"
	wait_for test -s "$there/recv.status" || fail "the receiver is still there"
	[ "$(cat "$QSM_LAB/a/srv/send.status")" = 69 ] || fail "$(cat "$QSM_LAB/a/srv/send.err")"
	[ "$(cat "$there/recv.status")" = 75 ] || fail "$(cat "$there/recv.err")"
	grep -q -- '--resume=' "$QSM_LAB/a/srv/send.err"
	grep -q -- '--resume=' "$there/recv.err"
	vhd-send --raw --resume="$(vhd-recv --token "$there/out")" disk.raw | vhd-recv --type=raw "$there/out"
	cmp "$there/out" disk.raw
}

@test "the client of ssh is killed" {
	over_ssh
	kill -KILL "$(pgrep -f "ssh -o BatchMode=yes hostb $QSM_BUILD/src/vhd-recv" | tail -n 1)"
	both_ended
}

@test "the server of ssh is killed" {
	over_ssh
	# the process of this connection: the parent of what it runs
	local shell
	shell=$(pgrep -f "sh -c $QSM_BUILD/src/vhd-recv --type=raw /srv/out" | head -n 1)
	[ -n "$shell" ]
	kill -KILL "$(ps -o ppid= -p "$shell")"
	both_ended
}
